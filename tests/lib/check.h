/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A test program is a list of TEST(name) { ... } and CHECK_MAIN(). It runs them in order of definition, prints one
 * line a test and, last, "N passed, N failed, N skipped". Exit status 1 if one failed. With arguments, runs only those.
 */
#ifndef NB_TESTS_CHECK_H
#define NB_TESTS_CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct check_case {
	const char *name;
	void (*fn)(void);
	struct check_case *next;
};

static struct check_case *check_first, **check_last = &check_first;
static int check_failed_here;
static const char *check_skip_why;

#define TEST(id)                                                                  \
	static void test_##id(void);                                              \
	static struct check_case case_##id = { #id, test_##id, NULL };            \
	__attribute__((constructor)) static void add_##id(void)                   \
	{                                                                         \
		*check_last = &case_##id;                                         \
		check_last = &case_##id.next;                                     \
	}                                                                         \
	static void test_##id(void)

/* Records the failure and goes on. */
#define CHECK(cond)                                                                      \
	do {                                                                             \
		if (!(cond)) {                                                           \
			printf("  %s:%d: not true: %s\n", __FILE__, __LINE__, #cond);    \
			check_failed_here++;                                             \
		}                                                                        \
	} while (0)

/* Records the failure and leaves the test. */
#define REQUIRE(cond)                                                                    \
	do {                                                                             \
		if (!(cond)) {                                                           \
			printf("  %s:%d: not true: %s\n", __FILE__, __LINE__, #cond);    \
			check_failed_here++;                                             \
			return;                                                          \
		}                                                                        \
	} while (0)

#define CHECK_EQ(a, b)                                                                               \
	do {                                                                                         \
		long long a_ = (long long)(a), b_ = (long long)(b);                                  \
		if (a_ != b_) {                                                                      \
			printf("  %s:%d: %s is %lld, not %lld\n", __FILE__, __LINE__, #a, a_, b_);   \
			check_failed_here++;                                                         \
		}                                                                                    \
	} while (0)

#define CHECK_STR(a, b)                                                                              \
	do {                                                                                         \
		const char *a_ = (a), *b_ = (b);                                                     \
		if (!a_ || strcmp(a_, b_)) {                                                         \
			printf("  %s:%d: %s is \"%s\", not \"%s\"\n", __FILE__, __LINE__, #a,        \
			       a_ ? a_ : "(null)", b_);                                              \
			check_failed_here++;                                                         \
		}                                                                                    \
	} while (0)

#define SKIP(why)                       \
	do {                            \
		check_skip_why = (why); \
		return;                 \
	} while (0)

static int check_main(int argc, char **argv)
{
	int passed = 0, failed = 0, skipped = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (struct check_case *c = check_first; c; c = c->next) {
		int wanted = argc < 2;

		for (int i = 1; i < argc; i++)
			wanted |= !strcmp(argv[i], c->name);
		if (!wanted)
			continue;
		check_failed_here = 0;
		check_skip_why = NULL;
		c->fn();
		if (check_skip_why) {
			printf("skip %s: %s\n", c->name, check_skip_why);
			skipped++;
		} else if (check_failed_here) {
			printf("FAIL %s\n", c->name);
			failed++;
		} else {
			printf("ok   %s\n", c->name);
			passed++;
		}
	}
	printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
	return failed ? 1 : 0;
}

#define CHECK_MAIN()                    \
	int main(int argc, char **argv) \
	{                               \
		return check_main(argc, argv); \
	}

#endif
