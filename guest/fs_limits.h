/* SPDX-License-Identifier: Apache-2.0 */
/* Bounds of the file methods. doc/limits.md lists them with the test that enforces each. */
#ifndef NB_GUEST_FS_LIMITS_H
#define NB_GUEST_FS_LIMITS_H

#define FS_HANDLES_MAX 1024                 /* open file handles of one connection */
#define FS_READ_FILE_MAX (256ul << 20)      /* bytes of readFile and readTextFile; larger files are read by handle */
#define FS_READ_MAX (16ul << 20)            /* bytes of one fileRead; it may read less than asked for */
#define FS_DIR_BYTES_MAX (256ul << 20)      /* names of one directory */
#define FS_WALK_BYTES_MAX (256ul << 20)     /* names a walker holds, all levels together */
#define FS_WALK_DEPTH_MAX 4096              /* levels a walker goes down; links may form circles */
#define FS_REMOVE_OPEN_MAX 64               /* directories a recursive remove holds open */
#define FS_PATTERN_MAX 16384                /* UTF-16 units of one regular expression or glob */
#define FS_PATTERNS_MAX 256                 /* match, skip, exts or exclude entries */
#define FS_REGEX_DEPTH_MAX 200              /* nested groups and classes */
#define FS_REGEX_MATCH_LIMIT 1000000        /* PCRE2 match limit for one subject; about 30 ms */
#define FS_REGEX_DEPTH_LIMIT 10000          /* PCRE2 backtracking depth */
#define FS_REGEX_HEAP_KIB 20000             /* PCRE2 heap for one match */
#define FS_TEMP_TRIES 10

#endif
