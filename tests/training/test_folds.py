"""Cross-validation and adaptation: who is measured by whom, what is said of it, what is kept."""

import json
import math
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
from safetensors.torch import save_file

from conftest import small_settings, stored
from leuko.errors import LeukoError
from leuko.evaluation.evaluate import compare, evaluate_folders
from leuko.evaluation.labels import LABEL_VALUES
from leuko.io import nifti
from leuko.io.files import sha256
from leuko.io.provenance import Finding
from leuko.io.tissue import CLASSES
from leuko.lesions import drawing
from leuko.model import runtime
from leuko.model.card import CARD_FILE, WEIGHTS_FILE, ModelCard, load_card, save_card
from leuko.model.network import SpecialisedVGG
from leuko.preprocessing.slices import Preparation
from leuko.report.pictures import Example, before_after
from leuko.report.plots import dice_change
from leuko.synthesis.random_fields import NoiseSettings
from leuko.synthesis.settings import SynthesisSettings
from leuko.training import cross_validation, holdout, lineage, loop, objective, plan
from leuko.training.adaptation import Change, Validation
from leuko.training.adaptation_report import as_html, as_markdown, changes_as_cells, examples
from leuko.training.dataset import Subject
from leuko.training.recipes import ADAPT

NARROW = ((4, 4), (8, 8))
SHORT = replace(ADAPT, steps=3, images_per_step=4, synthetic_part=0.0)


def measured(subject, model):
    """The measures of a model on a subject, without a file in between."""
    truth = nifti.read_labels(subject.labels, values=LABEL_VALUES)
    return compare(truth, holdout.segment(subject, runtime.load(model, by_torch=True))[0])


class StoppedError(Exception):
    """Stands for whatever ends a training early."""


def adapting(data, model, **changes):
    card = load_card(model)
    return small_settings(
        data,
        steps=3,
        recipe=changes.pop("recipe", SHORT),
        init=str(model),
        preparation=card.preparation,
        stages=card.stages,
        classes=card.classes,
        held_out=0.0,
        folds=3,
        **changes,
    )


def copied(model, folder):
    folder.mkdir()
    for name in (WEIGHTS_FILE, CARD_FILE):
        (folder / name).write_bytes((model / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def adapted(heads, foreign_model, tmp_path_factory):
    """A model adapted on six subjects, and what was said of it."""
    run = tmp_path_factory.mktemp("adapted") / "site-model"
    plan.start(run, adapting(heads, foreign_model))
    return run, cross_validation.fit(run)


def test_every_subject_is_measured_once(adapted, heads):
    _, validation = adapted
    names = sorted(path.name for path in heads.iterdir())
    assert sorted(name for fold in validation.folds for name in fold) == names
    assert [len(fold) for fold in validation.folds] == [2, 2, 2]
    assert sorted(validation.after) == sorted(validation.before) == names


def test_a_fold_trains_without_those_that_it_measures(heads, foreign_model, tmp_path, monkeypatch):
    seen = {}
    fit = loop.fit

    def noted(run, **options):
        groups = plan.read(run).groups
        seen[run.name] = [[s.name for s in groups[g]] for g in ("train", "held_out")]
        return fit(run, **options)

    monkeypatch.setattr(loop, "fit", noted)
    plan.start(tmp_path / "run", adapting(heads, foreign_model))
    validation = cross_validation.fit(tmp_path / "run")
    for number, names in enumerate(validation.folds, start=1):
        trained, measured = seen[str(number)]
        assert measured == names
        assert not set(trained) & set(measured)
        assert len(trained) + len(measured) == 6
    assert seen["run"] == [sorted(validation.after), []]


def test_before_is_what_the_first_model_measures(adapted, heads, foreign_model):
    _, validation = adapted
    subject = next(s for s in loop.find_subjects(heads) if s.name == "head3")
    assert validation.before["head3"] == measured(subject, foreign_model)


def test_scans_that_are_no_flair_are_told_before_training(
    heads, foreign_model, tmp_path, monkeypatch, caplog
):
    def stop(*_, **__):
        raise StoppedError

    monkeypatch.setattr(drawing, "CLASSES_WITHOUT_RIM", load_card(foreign_model).classes)
    monkeypatch.setattr(
        drawing.quality_checks,
        "examine",
        lambda case: ([Finding("do not use", "no-head", f"{case.flair.name} is odd")], []),
    )
    monkeypatch.setattr(loop, "fit", stop)
    plan.start(tmp_path / "run", adapting(heads, foreign_model))
    with pytest.raises(StoppedError):
        cross_validation.fit(tmp_path / "run")
    assert caplog.messages == [f"head{k}: FLAIR.nii.gz is odd" for k in range(6)]
    told = holdout.doubts(tmp_path / "run" / cross_validation.MASKS_BEFORE)
    assert told == {f"head{k}": "FLAIR.nii.gz is odd" for k in range(6)}


def test_the_record_has_the_changes(adapted):
    run, validation = adapted
    record = json.loads((run / cross_validation.RESULT_FILE).read_text())
    assert (record["model"], record["origin"]) == ("site-model", "phantom-model")
    assert record["changes"]["dsc"] == asdict(validation.change("dsc"))


def test_the_result_is_an_ordinary_model(adapted, foreign_model):
    run, _ = adapted
    card, before = load_card(run), load_card(foreign_model)
    assert card.name == "site-model"
    assert card.threshold == before.threshold
    assert card.training["recipe"] == "adapt"
    assert card.training["from"]["sha256"] == before.weights_sha256
    assert len(card.training["subjects"]) == 6
    assert runtime.load(run).card == card
    assert not (run / cross_validation.FOLDER).exists()


def test_a_model_that_is_started_from_lends_its_use_but_not_its_licence(
    heads, foreign_model, tmp_path
):
    start = copied(foreign_model, tmp_path / "start")
    changed = {"three_planes": True, "threshold": 0.3, "licence": "Apache-2.0"}
    save_card(start, replace(load_card(foreign_model), **changed))
    plan.start(tmp_path / "run", replace(adapting(heads, start), folds=0))
    loop.fit(tmp_path / "run")
    card = load_card(tmp_path / "run")
    assert (card.three_planes, card.threshold) == (True, 0.3)
    assert card.licence != "Apache-2.0"
    assert card.training["from"]["licence"] == "Apache-2.0"


def stop_at(place, *, time=1):
    """Stops at the given time that the run comes to a place: what it does, or "step 3"."""
    times = []

    def tell(what):
        times.extend([what] * what.startswith(place))
        if len(times) == time:
            raise StoppedError

    return {"doing": tell, "on_step": lambda at: tell(f"step {at.step} of {at.steps}")}


def test_a_cross_validation_that_is_stopped_again_and_again_goes_on(
    adapted, heads, foreign_model, tmp_path
):
    run, whole = adapted
    again = tmp_path / "site-model"
    plan.start(again, adapting(heads, foreign_model))
    for stop in (
        stop_at("measuring head1"),
        stop_at("preparing"),
        stop_at("step 2 of 12"),
        stop_at("preparing", time=2),  # of the second fold
        stop_at("step 5 of 12"),
        stop_at("measuring", time=7),  # after six, before: a subject that the second fold holds out
        stop_at("step 11 of 12"),
    ):
        with pytest.raises(StoppedError):
            cross_validation.fit(again, **stop)
    assert cross_validation.fit(again) == whole
    assert sha256(again / WEIGHTS_FILE) == sha256(run / WEIGHTS_FILE)
    for masks in (cross_validation.MASKS_BEFORE, holdout.MASKS):
        assert len(list((again / masks).glob("*/wmh.nii.gz"))) == 6


def test_a_cross_validation_that_is_killed_while_it_publishes_goes_on(
    adapted, heads, foreign_model, tmp_path, monkeypatch
):
    _, whole = adapted
    again = tmp_path / "site-model"
    plan.start(again, adapting(heads, foreign_model))

    def killed(*_):
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(cross_validation, "as_markdown", killed)
        with pytest.raises(StoppedError):
            cross_validation.fit(again)
    (again / cross_validation.FOLDER / "1" / holdout.MASKS / ".leuko-killed").mkdir()
    assert cross_validation.fit(again) == whole
    assert not list((again / holdout.MASKS).glob(".*"))


def test_a_finished_cross_validation_is_not_done_again(adapted):
    run, _ = adapted
    with pytest.raises(LeukoError, match=r"is finished; its results are in .*validation.json"):
        cross_validation.fit(run)


def test_the_masks_of_both_are_kept(adapted, heads):
    run, validation = adapted
    for rows, masks in (
        (validation.before, cross_validation.MASKS_BEFORE),
        (validation.after, holdout.MASKS),
    ):
        assert json.dumps(evaluate_folders(heads, run / masks)) == json.dumps(rows)


def test_an_example_is_the_slice_that_changed_most_cut_to_the_head(adapted, heads, tmp_path):
    run, validation = adapted
    flair = nifti.read(heads / "head2" / "FLAIR.nii.gz")
    before = flair.with_data(np.zeros(flair.data.shape, dtype=np.uint8))
    after = before.with_data(before.data.copy())
    after.data[20:23, 20:24, 4] = 1
    after.data[20:22, 20:22, 7] = 1
    for name, mask in (("before", before), ("after", after)):
        path = holdout.mask_path(tmp_path / name, "head2")
        path.parent.mkdir(parents=True)
        nifti.write(path, mask)
    masks = (tmp_path / "before", tmp_path / "after")
    example = cross_validation._example(validation, "head2", plan.read(run), masks)
    across, along = example.flair.shape
    labels = nifti.read_mask(heads / "head2" / "wmh.nii.gz").data
    for cut, whole in (
        (example.flair, flair.data),
        (example.labelled, labels),
        (example.found[0], before.data == 1),
        (example.found[1], after.data == 1),
    ):
        windows = np.lib.stride_tricks.sliding_window_view(whole[..., 4], (across, along))
        assert (windows == cut).all(axis=(2, 3)).any()
    assert example.found[1].sum() == 12


def test_pictures_are_cut_to_the_head():
    image = np.zeros((60, 50))
    image[20:30, 25:48] = 100
    assert cross_validation._head(image, dark=25) == (slice(16, 34), slice(21, 52))
    assert image[cross_validation._head(0 * image, dark=25)].shape == image.shape


def test_the_record_holds_both_measures(adapted):
    run, validation = adapted
    record = json.loads((run / cross_validation.RESULT_FILE).read_text())
    assert record["verdict"] == validation.verdict
    assert record["after"]["head1"]["dsc"] == validation.after["head1"]["dsc"]
    assert record["before"].keys() == record["after"].keys()
    assert record["folds"] == validation.folds


def test_cross_validation_works_from_scratch_too(heads, tmp_path):
    settings = small_settings(heads, steps=3, stages=NARROW, folds=2, held_out=0.0)
    plan.start(tmp_path / "run", settings)
    validation = cross_validation.fit(tmp_path / "run")
    assert len(validation.after) == 6
    assert not validation.before
    assert not (tmp_path / "run" / cross_validation.PAGE_FILE).exists()
    assert (tmp_path / "run" / cross_validation.RESULT_FILE).is_file()


def test_more_folds_than_subjects_leave_one_out_each():
    settings = plan.Settings(data="", folds=9)
    assert sorted(cross_validation.split(["a", "b", "c"], settings)) == [["a"], ["b"], ["c"]]


def test_scans_of_one_person_stay_together():
    names = [f"site/sub-{k}/ses-{visit}" for k in range(4) for visit in (1, 2)] + ["Utrecht/50"]
    parts = cross_validation.split(names, plan.Settings(data="", folds=5))
    assert sorted(map(len, parts)) == [1, 2, 2, 2, 2]
    assert sorted(name for part in parts for name in part) == sorted(names)
    for part in parts:
        assert len({name.rsplit("/", 1)[0] for name in part}) == 1


def test_two_scans_of_one_person_are_no_two_subjects(heads, foreign_model, tmp_path):
    for visit in (1, 2):
        home = tmp_path / "data" / "sub-01" / f"ses-{visit}"
        home.parent.mkdir(parents=True, exist_ok=True)
        home.symlink_to(heads / f"head{visit}")
    with pytest.raises(LeukoError, match="needs labelled scans of 2 people or more"):
        plan.start(tmp_path / "run", adapting(tmp_path / "data", foreign_model))


def test_a_subject_that_the_start_was_trained_with_is_not_measured(adapted, heads, tmp_path):
    run, _ = adapted
    again = adapting(heads, run)
    with pytest.raises(LeukoError, match=r"site-model, or .*, was trained on head0 and 5 more,"):
        plan.start(tmp_path / "run", again)
    assert not (tmp_path / "run").exists()
    # Over generations, and under another name: it is the scan that counts.
    plan.start(tmp_path / "second", replace(again, folds=0))
    loop.fit(tmp_path / "second")
    (tmp_path / "data").mkdir()
    for name in ("head0", "head1"):
        (tmp_path / "data" / f"new-{name}").symlink_to(heads / name)
    third = adapting(tmp_path / "data", tmp_path / "second")
    with pytest.raises(LeukoError, match=r"second, or .*, was trained on new-head\d,"):
        plan.start(tmp_path / "third", replace(third, folds=0, held_out=0.5))
    card = load_card(tmp_path / "second")
    assert card.training["from"]["from"]["name"] == "phantom-model"


def test_a_scan_is_known_however_it_is_stored(heads, tmp_path):
    flair = nifti.read(heads / "head0" / "FLAIR.nii.gz")
    turned = stored(flair, (2, 0, 1), (-1, 1, 1))
    subjects = []
    for name, volume in (
        ("as-it-was", flair),
        ("turned", turned),
        ("real", flair.with_data(flair.data.astype(np.float64))),
        ("other", flair.with_data(flair.data[::-1].copy())),
    ):
        path = tmp_path / name / "FLAIR.nii"
        path.parent.mkdir()
        nifti.write(path, volume)
        subjects.append(Subject(name, path, None, path))
    scans = [lineage.scan(subject) for subject in lineage.described(subjects, tmp_path)]
    assert scans[0] == scans[1] == scans[2] != scans[3]


def test_one_scan_under_two_names_is_refused(heads, foreign_model, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name, source in (("anna", "head0"), ("bert", "head1"), ("cleo", "head0")):
        (data / name).symlink_to(heads / source)
    with pytest.raises(LeukoError, match="anna and cleo have the same FLAIR"):
        plan.start(tmp_path / "run", adapting(data, foreign_model))


def test_folds_need_the_model_that_the_run_started_from(heads, foreign_model, tmp_path):
    start, run = copied(foreign_model, tmp_path / "start"), tmp_path / "run"
    plan.start(run, adapting(heads, start))

    def on_step(at):
        if at.step == 4:
            raise StoppedError

    with pytest.raises(StoppedError):
        cross_validation.fit(run, on_step=on_step)
    start.rename(tmp_path / "elsewhere")
    with pytest.raises(LeukoError, match="is not the model that the run started from"):
        cross_validation.fit(run)
    (tmp_path / "elsewhere").rename(start)
    assert len(cross_validation.fit(run).after) == 6


def test_folds_are_of_the_subjects_that_the_run_began_with(heads, foreign_model, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for number in range(4):
        (data / f"head{number}").symlink_to(heads / f"head{number}")
    plan.start(tmp_path / "run", replace(adapting(data, foreign_model), folds=2))
    (data / "later").symlink_to(heads / "head5")
    trained = []

    def on_step(_):
        for home in (tmp_path / "run" / cross_validation.FOLDER).iterdir():
            trained.extend(s.name for s in plan.read(home).trained)

    cross_validation.fit(tmp_path / "run", on_step=on_step)
    assert set(trained) == {f"head{number}" for number in range(4)}


def test_every_subject_is_measured_where_some_stop_the_training(heads, tmp_path):
    recipe = replace(small_settings(heads, steps=5).recipe, validate_steps=2)
    settings = small_settings(
        heads, steps=5, recipe=recipe, stages=NARROW, folds=3, patience=2, held_out=0.0
    )
    plan.start(tmp_path / "run", settings)
    assert len(plan.read(tmp_path / "run").groups["validation"]) == 1
    assert len(cross_validation.fit(tmp_path / "run").after) == 6


def test_one_subject_cannot_be_cross_validated(heads, foreign_model, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "anna").symlink_to(heads / "head0")
    with pytest.raises(LeukoError, match="needs labelled scans of 2 people or more"):
        plan.start(tmp_path / "run", adapting(tmp_path / "data", foreign_model))


# Synthetic images


@pytest.fixture(scope="module")
def tissue_model(tmp_path_factory):
    """A narrow network for six classes at 1 mm, not trained."""
    folder = tmp_path_factory.mktemp("models") / "tissues"
    folder.mkdir()
    save_file(SpecialisedVGG(len(CLASSES), NARROW).state_dict(), folder / WEIGHTS_FILE)
    card = ModelCard(
        name="tissues",
        classes=CLASSES,
        preparation=Preparation(t1_optional=True),
        stages=NARROW,
        side_maps=16,
        training={},
        three_planes=True,
    )
    save_card(folder, card)
    return folder


def test_synthetic_images_are_mixed_in_and_measured(heads, tissue_model, tmp_path, monkeypatch):
    monkeypatch.setattr(cross_validation, "SYNTHETIC_SCANS", 2)
    recipe = replace(SHORT, steps=2, synthetic_part=0.5)
    settings = replace(
        adapting(heads, tissue_model, recipe=recipe),
        folds=2,
        synthesis=SynthesisSettings(noise=NoiseSettings(coarse_mm=12.5)),
    )
    counts = []
    usual = objective.labelled_losses

    def noted(logits, batch, total, *, settings):
        counts.append((len(batch.labels), len(batch.classes)))
        assert logits.shape[1] == len(CLASSES)
        return usual(logits, batch, total, settings=settings)

    monkeypatch.setattr(objective, "labelled_losses", noted)
    plan.start(tmp_path / "run", settings)
    validation = cross_validation.fit(tmp_path / "run")
    assert counts == [(2, 2)] * 6
    before, after = validation.synthetic
    assert len(before) == len(after) == 2
    synthesis = load_card(tmp_path / "run").training["synthesis"]
    assert SynthesisSettings.from_json(synthesis) == settings.synthesis


def test_synthetic_images_need_a_model_of_their_kind(heads, foreign_model, tmp_path):
    recipe = replace(SHORT, synthetic_part=0.25)
    with pytest.raises(LeukoError, match="uses synthetic images, which have the channels"):
        plan.start(tmp_path / "run", adapting(heads, foreign_model, recipe=recipe))
    assert not (tmp_path / "run").exists()


# What is said


def row(dsc, **others):
    keys = ("dsc", "h95_mm", "avd_percent", "log_avd", "lesion_recall", "lesion_f1")
    volumes = {"reference_ml": 3.0, "prediction_ml": 2.0}
    return dict.fromkeys(keys, 0.5) | {"dsc": dsc} | volumes | others


def validation(befores, afters, synthetic=None, doubts=None):
    """Of rows, or of Dice alone."""
    names = [f"sub-{k}" for k in range(len(befores))]
    before, after = (
        {n: v if isinstance(v, dict) else row(v) for n, v in zip(names, values, strict=True)}
        for values in (befores, afters)
    )
    return Validation(
        model="ours",
        origin="leuko-base",
        folds=[names],
        after=after,
        before=before,
        synthetic=synthetic,
        doubts=doubts or {},
    )


LOW, HIGH = [0.40, 0.50, 0.60, 0.45, 0.55, 0.52], [0.60, 0.72, 0.70, 0.60, 0.68, 0.70]


def test_the_verdict_follows_the_interval_of_the_change():
    assert validation(LOW, HIGH).verdict == "better"
    assert validation(HIGH, LOW).verdict == "worse"
    mixed = [0.60, 0.40, 0.70, 0.35, 0.65, 0.50]
    assert validation(LOW, mixed).verdict == "no clear difference"
    assert validation(LOW, LOW).verdict == "no clear difference"


def test_a_change_counts_subjects_that_have_both():
    after = {"c": 0.9, "b": 0.9, "a": 0.6}  # paired by name, not by order
    change = Change.of({"a": 0.5, "b": math.nan, "c": 0.7}, after)
    assert change.people == 2
    assert change.before == pytest.approx(0.6)
    assert change.change == pytest.approx(0.15)
    # Student's t of one degree of freedom, 12.706, times 0.0707 / sqrt(2).
    assert change.low == pytest.approx(0.15 - 0.6353, abs=1e-4)
    assert change.high == pytest.approx(0.15 + 0.6353, abs=1e-4)


def test_scans_of_one_person_count_as_one():
    before = {f"sub-{k}": 0.5 for k in range(3)}
    after = {"sub-0": 0.6, "sub-1": 0.7, "sub-2": 0.65}
    often = {f"{name}/ses-{visit}": value for name, value in after.items() for visit in range(5)}
    assert Change.of(before, after) == Change.of(dict.fromkeys(often, 0.5), often)


def test_a_change_that_is_none_is_seldom_called_one():
    rng = np.random.default_rng(0)
    for people in (2, 3, 5, 15):
        wrong = 0
        for _ in range(1000):
            change = Change.of(
                *({str(k): v for k, v in enumerate(rng.normal(size=people))} for _ in range(2))
            )
            wrong += change.low > 0 or change.high < 0
        assert wrong < 75  # 50 are expected; 75 is 3.6 standard deviations more


def test_a_model_that_finds_wmh_where_there_are_none_is_not_better():
    nan = math.nan
    healthy = [row(nan, reference_ml=0.0, prediction_ml=found) for found in (0.0, 0.0, 0.5, 0.7)]
    found = validation(LOW + healthy[:2], HIGH + healthy[2:])
    assert found.change("dsc").low > 0
    assert found.verdict == "no clear difference"
    said = "In 2 people without WMH it finds 0.60 mL on average, leuko-base 0.00 mL."
    assert said in found.sentences()
    assert validation(LOW + healthy[:2], HIGH + healthy[:2]).verdict == "better"


def test_one_person_is_written_in_the_singular():
    healthy = row(math.nan, reference_ml=0.0, prediction_ml=0.1)
    found = validation([0.5, healthy], [0.6, healthy])
    said = " ".join(found.sentences())
    assert "on 1 person not used in training" in said
    assert "With 1 person, below 6," in said
    assert "In 1 person without WMH" in said


def test_forgetting_is_said():
    kept = validation(LOW, HIGH, ([0.8, math.nan, 0.7], [0.79, math.nan, 0.68]))
    lost = validation(LOW, HIGH, ([0.8, 0.7], [0.75, 0.66]))
    assert not kept.is_worse_on_synthetic
    assert lost.is_worse_on_synthetic
    assert "It has become worse on other scans: keep leuko-base for them." in lost.sentences()
    assert "Use ours for scans like these." in lost.sentences()


def test_scans_that_are_doubted_are_named_in_the_report():
    found = validation(LOW, HIGH, doubts={"sub-2": "were FLAIR and T1 swapped?"})
    said = "Check the scans of sub-2: were FLAIR and T1 swapped?"
    assert found.sentences()[-1] == said
    assert said in as_html(found, [], {})
    assert said in as_markdown(found, {})


def test_synthetic_scans_that_both_miss_hide_no_loss():
    lost = validation(LOW, HIGH, ([0.8, 0.7, 0.0, 0.0], [0.78, 0.66, 0.0, 0.0]))
    assert lost.synthetic_change.people == 2
    assert lost.is_worse_on_synthetic
    assert "On 2 synthetic scans" in " ".join(lost.sentences())
    assert not validation(LOW, HIGH, ([0.0], [0.0])).is_worse_on_synthetic


def test_few_subjects_are_said():
    said = "With 3 people, below 6, the interval is unreliable."
    assert said in validation(LOW[:3], HIGH[:3]).sentences()


def test_examples_are_the_extremes_and_the_middle():
    found = validation([0.5] * 5, [0.6, 0.3, 0.9, 0.5, 0.7])
    assert examples(found) == ["sub-2", "sub-0", "sub-1"]
    assert examples(validation([0.5], [0.6])) == ["sub-0"]


def test_subjects_without_lesions_are_no_examples():
    nan = math.nan
    assert examples(validation([nan, 0.5], [0.3, 0.6])) == ["sub-1"]
    nothing = validation([nan, nan], [nan, nan])
    assert examples(nothing) == []
    assert nothing.verdict == "no clear difference"
    assert "n/a (95 % interval n/a to n/a)" in nothing.sentences()[0]
    assert not re.search(r"\bnan\b", as_markdown(nothing, {}) + as_html(nothing, [], {}))


def test_cells_have_signs_and_units():
    cells = dict(changes_as_cells(validation(LOW, HIGH)))
    assert cells["Dice (DSC)"] == ["0.503", "0.667", "+0.163", "+0.116 to +0.211"]
    assert cells["Hausdorff 95 (H95), mm"] == ["0.5", "0.5", "+0.0", "+0.0 to +0.0"]


def test_the_chart_tells_gains_from_losses():
    pairs = {"a": (0.5, 0.7), "b": (0.5, 0.4), "c": (0.5, 0.5), "d": (math.nan, 0.3)}
    svg = dice_change(pairs).svg
    assert svg.count("<circle") == 6
    assert [svg.count(f">{kind}<") for kind in ("gained", "lost", "unchanged")] == [1, 1, 1]
    assert "<circle" not in dice_change({"d": (math.nan, 0.3)}).svg


def test_a_picture_has_the_shape_of_its_slice():
    image, mask = np.ones((40, 30)), np.zeros((40, 30), dtype=bool)
    example = Example("a", image, mask, (mask, mask), (0.5, 0.6), aspect=3.0)
    width, height = before_after(example).size
    assert height / (width / 2) == pytest.approx(3 * 30 / 40, rel=0.01)


def test_the_text_report_holds_every_subject():
    text = as_markdown(validation(LOW, HIGH), {"recipe": "adapt"})
    assert text.startswith("# ours: better\n")
    assert "| sub-3 | 3.0 | 2.0 | 2.0 | 0.450 | 0.600 |" in text
    assert "| mean of people | 3.0 | 2.0 | 2.0 | 0.503 | 0.667 |" in text
    assert "- recipe: adapt" in text


def test_a_names_brackets_stay_text_on_the_page():
    found = validation(LOW, HIGH)
    found = replace(found, model="<b>ours", origin="<u>base")
    page = as_html(found, [], {"scans": "<i>"})
    assert not any(tag in page for tag in ("<b>ours", "<u>base", "<i>"))
    assert "- scans: A & B" in as_markdown(found, {"scans": "A & B"})


@pytest.mark.browser
def test_the_page_opens(adapted, opened):
    run, validation = adapted
    page = opened(run / cross_validation.PAGE_FILE)
    assert page.inner_text("h1") == f"site-model: {validation.verdict}"
    assert page.locator("img").count() == len(examples(validation))
    assert page.locator("svg.plot").count() == 1
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 100)")


@pytest.mark.browser
def test_the_page_fits_a_phone(adapted, opened):
    page = opened(adapted[0] / cross_validation.PAGE_FILE, viewport={"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_folds_differ_with_the_seed():
    names = [f"sub-{k}" for k in range(10)]
    first, second = (
        cross_validation.split(names, plan.Settings(data="", folds=5, seed=seed)) for seed in (0, 1)
    )
    assert first != second
    assert np.unique([len(fold) for fold in first]).tolist() == [2]
