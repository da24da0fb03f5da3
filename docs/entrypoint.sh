#!/bin/sh
# Of the container: a folder first means that it is run as a BIDS App.
if [ -d "$1" ]; then
    exec leuko bids "$@"
fi
exec leuko "$@"
