# SPDX-License-Identifier: Apache-2.0
# A fuzz target: add to check_PROGRAMS tests/fuzz/fuzz_<name>, with
#   _SOURCES = tests/fuzz/fuzz_<name>.c $(FUZZ_DRIVER)   _LDFLAGS = $(AM_LDFLAGS) $(FUZZ_LINK)
# and its corpus to tests/fuzz/corpus/<name>/. With CC=clang and --enable-fuzz it is a libFuzzer program, else it replays its corpus.
# An hour of one, and what it found added to the corpus: tests/fuzz/long.sh 3600 NAME.
if FUZZ
FUZZ_DRIVER =
FUZZ_LINK = -fsanitize=fuzzer
else
FUZZ_DRIVER = tests/fuzz/replay.c
FUZZ_LINK =
endif
EXTRA_DIST += tests/fuzz/replay.c tests/fuzz/long.sh tests/fuzz/corpus
