#!/bin/sh
# Of the container: a folder's path first means that it is run as a BIDS App.
case "$1" in
*/*) exec leuko bids "$@" ;;
*) exec leuko "$@" ;;
esac
