#!/bin/sh
# Makes the reference arrays with BART (these came from version 0.8.00): an image of 6 x 4 numbers
# and its unitary k-space, and a stack of two slices with three coils counted through.
set -e
cd "$(dirname "$0")"
bart vec $(seq 1 24) line
bart reshape 3 6 4 line image
bart fft -u 3 image kspace
bart vec $(seq 1 144) line
bart reshape 8203 6 4 3 2 line stack
rm line.cfl line.hdr
