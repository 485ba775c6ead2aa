# SPDX-License-Identifier: Apache-2.0
# The file methods; a library because the agent links it statically and the tests link it too.
noinst_LIBRARIES += libnbfs.a
libnbfs_a_CFLAGS = $(AM_CFLAGS) $(NB_PIE_CFLAGS)
libnbfs_a_SOURCES = guest/b64.c guest/b64.h guest/fs.c guest/fs.h guest/fs_dir.c guest/fs_error.c guest/fs_expand.c \
	guest/fs_file.c guest/fs_glob.c guest/fs_glob.h guest/fs_handle.c guest/fs_internal.h guest/fs_limits.h \
	guest/fs_param.c guest/fs_path.c guest/fs_regex.c guest/fs_regex.h guest/fs_regex_js.c guest/fs_stream.c \
	guest/fs_value.c guest/fs_walk.c guest/fs_walk.h
# What a program that uses libnbfs.a links besides.
FS_LIBS = libnbfs.a libnbbase.a $(JSONC_LIBS) $(PCRE2_LIBS) -lpthread -lm

EXTRA_DIST += tests/sdk/fs.mjs tests/it/fs_differential.mts tests/alone/fs-differential.sh
noinst_PROGRAMS += tests/it/fs-driver
tests_it_fs_driver_SOURCES = tests/it/fs_driver.c
tests_it_fs_driver_LDADD = $(FS_LIBS)

check_PROGRAMS += tests/unit/test_fs tests/fuzz/fuzz_glob
tests_unit_test_fs_SOURCES = tests/unit/test_fs.c
tests_unit_test_fs_LDADD = $(FS_LIBS)
tests_fuzz_fuzz_glob_SOURCES = tests/fuzz/fuzz_glob.c $(FUZZ_DRIVER)
tests_fuzz_fuzz_glob_LDFLAGS = $(AM_LDFLAGS) $(FUZZ_LINK)
tests_fuzz_fuzz_glob_LDADD = $(FS_LIBS)
