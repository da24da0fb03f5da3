#!/bin/sh
# Of the container: a folder's path first means that it is run as a BIDS App; a program's path, as
# workflow engines give it, that this is run.
case "$1" in
*/*) if [ -f "$1" ] && [ -x "$1" ]; then exec "$@"; else exec leuko bids "$@"; fi ;;
*) exec leuko "$@" ;;
esac
