# SPDX-License-Identifier: Apache-2.0
# The file methods; a library because the agent links it statically and the tests link it too.
noinst_LIBRARIES += libnbfs.a
libnbfs_a_CFLAGS = $(AM_CFLAGS) $(NB_PIE_CFLAGS)
libnbfs_a_SOURCES = guest/b64.c guest/b64.h guest/fs.c guest/fs.h guest/fs_dir.c guest/fs_error.c guest/fs_file.c \
	guest/fs_handle.c guest/fs_internal.h guest/fs_limits.h guest/fs_param.c \
	guest/fs_path.c guest/fs_value.c guest/fs_walk.c
# What a program that uses libnbfs.a links besides.
FS_LIBS = libnbfs.a libnbbase.a $(JSONC_LIBS) $(PCRE2_LIBS) -lpthread -lm
