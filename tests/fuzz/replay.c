/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Feeds a fuzz target its corpus without libFuzzer, for `make check`: each file as it is, then REPLAY_MUTATIONS seeded random
 * mutations of it; fewer each where a directory has many, so that it takes about as long however large it grows. Arguments: files or directories; without any, $srcdir/tests/fuzz/corpus/<name> for a program called
 * fuzz_<name>. An empty corpus is a failure. The last line is the one of tests/lib/check.h.
 */
#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define REPLAY_MUTATIONS 2000
#define REPLAY_ALL 40000 /* of a directory's files together */
#define REPLAY_BYTES_MAX (1u << 20)
#define REPLAY_PATH_MAX 4096

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t files;
static size_t mutations = REPLAY_MUTATIONS;

/* A buffer of exactly the size, so that a sanitizer sees a read beyond it. */
static void feed(const uint8_t *data, size_t n)
{
	uint8_t *exact = malloc(n ? n : 1);

	if (!exact)
		exit(1);
	memcpy(exact, data, n);
	LLVMFuzzerTestOneInput(exact, n);
	free(exact);
}

static size_t mutate(uint8_t *mem, size_t n, unsigned int *seed)
{
	int times = 1 + rand_r(seed) % 4;

	while (times--) {
		size_t at = n ? (size_t)rand_r(seed) % n : 0, k;

		switch (rand_r(seed) % 5) {
		case 0: /* a bit */
			if (n)
				mem[at] ^= (uint8_t)(1u << rand_r(seed) % 8);
			break;
		case 1: /* a byte, often a special one */
			if (n)
				mem[at] = (uint8_t)("\0\xff\x7f\x80\n\"{}"[rand_r(seed) % 8]);
			break;
		case 2: /* cut the end off */
			n = at;
			break;
		case 3: /* double a piece */
			k = n ? (size_t)rand_r(seed) % (n - at) : 0;
			if (n + k <= REPLAY_BYTES_MAX) {
				memmove(mem + at + k, mem + at, n - at);
				n += k;
			}
			break;
		default: /* take a piece out */
			k = n ? (size_t)rand_r(seed) % (n - at) : 0;
			memmove(mem + at, mem + at + k, n - at - k);
			n -= k;
		}
	}
	return n;
}

static int replay_file(const char *path)
{
	static uint8_t mem[REPLAY_BYTES_MAX], copy[REPLAY_BYTES_MAX];
	FILE *in = fopen(path, "re");
	unsigned int seed = 1;
	size_t n;

	if (!in) {
		fprintf(stderr, "%s: %s\n", path, strerror(errno));
		return -1;
	}
	n = fread(mem, 1, sizeof(mem), in);
	fclose(in);
	feed(mem, n);
	for (size_t i = 0; i < mutations; i++) {
		memcpy(copy, mem, n);
		feed(copy, mutate(copy, n, &seed));
	}
	files++;
	return 0;
}

/* At least ten of each. */
static void mutations_share(DIR *d)
{
	size_t n = 1;

	while (readdir(d))
		n++;
	rewinddir(d);
	mutations = REPLAY_ALL / n < REPLAY_MUTATIONS ? REPLAY_ALL / n : REPLAY_MUTATIONS;
	mutations = mutations > 10 ? mutations : 10;
}

static int replay(const char *path)
{
	char inner[REPLAY_PATH_MAX];
	struct stat st;
	DIR *d;
	int r = 0;

	if (stat(path, &st) < 0) {
		fprintf(stderr, "%s: %s\n", path, strerror(errno));
		return -1;
	}
	if (!S_ISDIR(st.st_mode))
		return replay_file(path);
	d = opendir(path);
	if (d)
		mutations_share(d);
	for (struct dirent *e; d && (e = readdir(d));) {
		if (e->d_name[0] == '.')
			continue;
		if ((size_t)snprintf(inner, sizeof(inner), "%s/%s", path, e->d_name) >= sizeof(inner) || replay_file(inner) < 0)
			r = -1;
	}
	if (d)
		closedir(d);
	return d ? r : -1;
}

static int replay_default(const char *program)
{
	const char *srcdir = getenv("srcdir"), *name = strrchr(program, '/');
	char path[REPLAY_PATH_MAX];

	name = name ? name + 1 : program;
	if (strncmp(name, "fuzz_", 5))
		return -1;
	snprintf(path, sizeof(path), "%s/tests/fuzz/corpus/%s", srcdir ? srcdir : ".", name + 5);
	return replay(path);
}

int main(int argc, char **argv)
{
	int r = argc < 2 ? replay_default(argv[0]) : 0;

	for (int i = 1; i < argc; i++)
		if (replay(argv[i]) < 0)
			r = -1;
	r = r || !files;
	printf("%zu files, %zu mutations each\n%d passed, %d failed, 0 skipped\n", files, mutations, !r, !!r);
	return r;
}
