"""Makes docs/method.png, the picture at the top of the README, with `leuko demo`.

python experiments/readme_picture.py
"""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from leuko.cli import main

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        demo = Path(folder) / "demo"
        with suppress(SystemExit):
            main(["demo", "-o", str(demo)])
        shutil.copy(demo / "picture.png", Path(__file__).parents[1] / "docs" / "method.png")
