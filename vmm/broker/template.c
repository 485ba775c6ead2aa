/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/broker/template.h"

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/fd.h"
#include "base/hex.h"
#include "base/log.h"
#include "vmm/broker/build.h"
#include "vmm/broker/image.h"
#include "vmm/broker/limits.h"
#include "vmm/broker/machine.h"
#include "vmm/store/copy.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define TEMPLATE_FORMAT "2"

struct template_wait {
	struct template_wait *next, **at;
	template_fn *fn;
	void *arg;
};

struct template {
	struct template *next;
	char image[BROKER_NAME_MAX], name[TEMPLATE_NAME_MAX];
	uint32_t memory_mib;
	enum { TEMPLATE_WANTED, TEMPLATE_BUILDING, TEMPLATE_READY, TEMPLATE_FAILED } state;
	unsigned int tries;
	uint64_t retry_ms;
	struct fault f;
	struct template_use use;
	struct template_wait *waits;
	size_t n_waits;
};

struct template_set {
	struct template *first;
	size_t n;
	struct source *pump;
	struct template *building;
	struct build *build;
};

static void on_pump(void *arg);

/* --- names ------------------------------------------------------------------------------------------------------ */

static enum rc hash_file(struct buf *text, int dirfd, const char *name, struct fault *ret_f)
{
	struct stat st;

	if (fstatat(dirfd, name, &st, 0) < 0)
		return fault_set(ret_f, rc_from_errno(errno), errno, "image file '%s'", name);
	if (buf_printf(text, "%s %lld %lld.%ld\n", name, (long long)st.st_size, (long long)st.st_mtim.tv_sec,
		       st.st_mtim.tv_nsec))
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	return RC_OK;
}

/* All that the state of a booted machine depends on, as text. */
static enum rc identity_text(struct broker *b, const char *image, uint32_t memory_mib, struct buf *text,
			     struct fault *ret_f)
{
	_cleanup_fd_ int dirfd = openat(b->images_dirfd, image, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	_cleanup_free_ char *json = NULL;
	size_t n;
	enum rc rc;

	if (dirfd < 0)
		return fault_set(ret_f, RC_ABSENT, errno, "no image '%s'", image);
	rc = file_read_at(dirfd, "image.json", IMAGE_JSON_MAX, &json, &n, ret_f);
	if (rc)
		return fault_wrap(ret_f, "image '%s'", image);
	if (buf_printf(text, "format " TEMPLATE_FORMAT " version " NB_VERSION " engine %s shape %s memory %u vcpus %" PRIu64
			     " disk %" PRIu64 "\n%s\n%s\n",
		       b->verdict.name, b->engine->shape, memory_mib, b->config->vm_vcpus, b->config->vm_disk_mib, IMAGE_CMDLINE, json))
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	rc = hash_file(text, dirfd, "kernel", ret_f);
	if (!rc)
		rc = hash_file(text, dirfd, "initrd", ret_f);
	return rc ? rc : hash_file(text, dirfd, "root.erofs", ret_f);
}

static enum rc template_name(struct broker *b, const char *image, uint32_t memory_mib, char out[TEMPLATE_NAME_MAX],
			     struct fault *ret_f)
{
	_cleanup_buf_ struct buf text = BUF_INIT(2 * IMAGE_JSON_MAX);
	unsigned char hash[EVP_MAX_MD_SIZE];
	char hex[17];
	enum rc rc = identity_text(b, image, memory_mib, &text, ret_f);

	if (rc)
		return rc;
	if (!EVP_Digest(buf_data(&text), buf_len(&text), hash, NULL, EVP_sha256(), NULL))
		return fault_set(ret_f, RC_NOMEM, 0, "sha256");
	hex_of(hex, hash, 8);
	snprintf(out, TEMPLATE_NAME_MAX, "%s-%u-%s", image, memory_mib, hex);
	return RC_OK;
}

/* --- waiting ---------------------------------------------------------------------------------------------------- */

static void wait_unlink(struct template_wait *w)
{
	*w->at = w->next;
	if (w->next)
		w->next->at = w->at;
}

void template_cancel(struct template_wait *w)
{
	if (!w)
		return;
	wait_unlink(w);
	free(w);
}

static void waits_tell(struct template *t, const struct template_use *use, const struct fault *f)
{
	/* One by one from the head: a callback may cancel others or ask anew. */
	struct template_wait *w = t->waits;

	t->waits = NULL;
	if (w)
		w->at = &w;
	while (w) {
		struct template_wait *first = w;
		template_fn *fn = first->fn;
		void *arg = first->arg;

		template_cancel(first);
		fn(arg, use, f);
	}
}

static enum rc wait_add(struct template *t, template_fn *fn, void *arg, struct template_wait **ret,
			struct fault *ret_f)
{
	struct template_wait *w;
	size_t n = 0;

	for (w = t->waits; w; w = w->next)
		n++;
	if (n >= TEMPLATE_WAITERS_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "too many wait for the template already");
	w = calloc(1, sizeof(*w));
	if (!w)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	*w = (struct template_wait){ .next = t->waits, .at = &t->waits, .fn = fn, .arg = arg };
	if (w->next)
		w->next->at = &w->next;
	t->waits = w;
	*ret = w;
	return fault_set(ret_f, RC_AGAIN, 0, "template is being made");
}

/* --- the set ---------------------------------------------------------------------------------------------------- */

static void use_close(struct broker *b, struct template_use *u)
{
	if (u->snap)
		b->engine->ops->snapshot_free(u->snap);
	u->snap = NULL;
	close_fd(&u->overlay_fd);
	close_fd(&u->image_fd);
}

static enum rc template_add(struct broker *b, const char *image, uint32_t memory_mib, struct template **ret,
			    struct fault *ret_f)
{
	struct template *t, **end = &b->templates->first;

	if (b->templates->n >= TEMPLATES_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "too many templates on this host");
	t = calloc(1, sizeof(*t));
	if (!t)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	snprintf(t->image, sizeof(t->image), "%s", image);
	t->memory_mib = memory_mib;
	t->use = (struct template_use){ NULL, -1, -1 };
	while (*end)
		end = &(*end)->next;
	*end = t;
	b->templates->n++;
	*ret = t;
	return RC_OK;
}

static struct template *template_find(struct broker *b, const char *image, uint32_t memory_mib)
{
	for (struct template *t = b->templates->first; t; t = t->next)
		if (t->memory_mib == memory_mib && !strcmp(t->image, image))
			return t;
	return NULL;
}

enum rc template_get(struct broker *b, const char *image, uint32_t memory_mib, template_fn *fn, void *arg,
		     struct template_use *ret_use, struct template_wait **ret_wait, struct fault *ret_f)
{
	struct template *t;
	enum rc rc;

	if (!*image)
		image = b->config->image;
	t = template_find(b, image, memory_mib);
	if (t && t->state == TEMPLATE_READY) {
		*ret_use = t->use;
		return RC_OK;
	}
	if (t && t->state == TEMPLATE_FAILED && now_ms() < t->retry_ms)
		return fault_set(ret_f, t->f.rc, 0, "%s", t->f.text);
	if (!t) {
		char name[TEMPLATE_NAME_MAX];

		/* An image that does not exist must not take a place in the list. */
		rc = template_name(b, image, memory_mib, name, ret_f);
		if (!rc)
			rc = template_add(b, image, memory_mib, &t, ret_f);
		if (rc)
			return rc;
	}
	if (t->state == TEMPLATE_FAILED) {
		t->state = TEMPLATE_WANTED;
		t->tries = 0;
	}
	rc = wait_add(t, fn, arg, ret_wait, ret_f);
	if (t == b->templates->building && b->templates->build)
		build_hurry(b->templates->build);
	loop_timer_set(b->templates->pump, now_ms());
	return rc;
}

/* --- making them ------------------------------------------------------------------------------------------------ */

static void template_ready(struct broker *b, struct template *t)
{
	t->state = TEMPLATE_READY;
	log_info("template ready name=%s", t->name);
	waits_tell(t, &t->use, NULL);
	loop_timer_set(b->templates->pump, now_ms());
}

static void template_failed(struct broker *b, struct template *t, const struct fault *f)
{
	t->f = *f;
	t->tries++;
	log_fault(LOG_LEVEL_ERROR, f, "template %s-%u, attempt %u of %d", t->image, t->memory_mib, t->tries, TEMPLATE_TRIES);
	if (t->tries < TEMPLATE_TRIES && f->rc != RC_ABSENT && f->rc != RC_LIMIT && f->rc != RC_NOSPACE) {
		t->state = TEMPLATE_WANTED;
	} else {
		t->state = TEMPLATE_FAILED;
		t->retry_ms = now_ms() + TEMPLATE_RETRY_MS;
		fault_wrap(&t->f, "no template");
		waits_tell(t, NULL, &t->f);
	}
	loop_timer_set(b->templates->pump, now_ms());
}

static void on_built(void *arg, enum rc rc, const struct template_use *use, const struct fault *f)
{
	struct broker *b = arg;
	struct template *t = b->templates->building;

	b->templates->building = NULL;
	b->templates->build = NULL;
	if (rc) {
		template_failed(b, t, f);
		return;
	}
	t->use = *use;
	template_ready(b, t);
}

/* Anew: what there is, if anything, is of no use. */
static void template_build(struct broker *b, struct template *t, enum rc why, const struct fault *why_f)
{
	struct fault f;

	if (why != RC_ABSENT)
		log_fault(LOG_LEVEL_WARN, why_f, "template %s is made anew", t->name);
	use_close(b, &t->use);
	tree_remove_at(b->templates_dirfd, t->name, NULL);
	log_info("template begun name=%s", t->name);
	if (!build_start(b, t->image, t->name, t->memory_mib, t->tries, !t->waits, on_built, b, &b->templates->build, &f))
		return;
	b->templates->building = NULL;
	template_failed(b, t, &f);
}

static void on_opened(void *arg, enum rc rc, const struct fault *f)
{
	struct broker *b = arg;
	struct template *t = b->templates->building;

	if (rc) {
		template_build(b, t, rc, f);
	} else {
		b->templates->building = NULL;
		template_ready(b, t);
	}
}

static void template_make(struct broker *b, struct template *t)
{
	struct fault f;
	enum rc rc = template_name(b, t->image, t->memory_mib, t->name, &f);

	if (rc) {
		template_failed(b, t, &f);
		return;
	}
	t->state = TEMPLATE_BUILDING;
	b->templates->building = t;
	rc = build_open(b, t->image, t->name, &t->use, on_opened, b, &f);
	if (rc)
		template_build(b, t, rc, &f);
}

static void on_pump(void *arg)
{
	struct broker *b = arg;
	struct template_set *s = b->templates;
	struct template *pick = NULL;

	if (s->building || b->closing)
		return;
	/* Machines of an earlier attempt or an earlier broker may still be on their way out. */
	if (machine_find(b, BUILD_COLD_ID) || machine_find(b, BUILD_CHECK_ID)) {
		loop_timer_set(s->pump, now_ms() + 20);
		return;
	}
	for (struct template *t = s->first; t; t = t->next)
		if (t->state == TEMPLATE_WANTED && (!pick || (t->waits && !pick->waits)))
			pick = t;
	if (pick)
		template_make(b, pick);
}

/* --- start and end ---------------------------------------------------------------------------------------------- */

enum rc templates_new(struct broker *b, struct fault *ret_f)
{
	b->templates = calloc(1, sizeof(*b->templates));
	if (!b->templates)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	return loop_timer(b->loop, UINT64_MAX, on_pump, b, &b->templates->pump, ret_f);
}

/* <image>-<memory>-<hash> whose hash is what it would be now. */
static bool name_current(struct broker *b, const char *name)
{
	char image[BROKER_NAME_MAX], now[TEMPLATE_NAME_MAX];
	const char *hash = strrchr(name, '-'), *memory = hash;
	size_t n;

	while (memory && memory > name && *--memory != '-')
		;
	if (!hash || memory == name || (n = (size_t)(memory - name)) >= sizeof(image))
		return false;
	memcpy(image, name, n);
	image[n] = '\0';
	return broker_name_ok(image) &&
	       !template_name(b, image, (uint32_t)strtoul(memory + 1, NULL, 10), now, NULL) && !strcmp(now, name);
}

static void stale_remove(struct broker *b)
{
	int fd = openat(b->templates_dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;

	if (!dir)
		close_fd(&fd);
	while (dir && (e = readdir(dir))) {
		struct fault f;

		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..") || name_current(b, e->d_name))
			continue;
		log_info("template removed, it is not of this image, host and version name=%s", e->d_name);
		if (tree_remove_at(b->templates_dirfd, e->d_name, &f))
			log_fault(LOG_LEVEL_WARN, &f, "template");
	}
	if (dir)
		closedir(dir);
}

enum rc templates_start(struct broker *b, struct fault *ret_f)
{
	const char *p = b->config->template_memory_mib;
	struct template *t;
	char *end;

	stale_remove(b);
	for (;; p = end) {
		unsigned long mib;

		while (*p == ' ' || *p == ',')
			p++;
		if (!*p)
			break;
		mib = strtoul(p, &end, 10);
		if (end == p || mib < b->config->vm_memory_mib_min || mib > b->config->vm_memory_mib_max)
			return fault_set(ret_f, RC_INVALID, 0, "template_memory_mib is not a list of possible memory sizes");
		if (!template_find(b, b->config->image, (uint32_t)mib) &&
		    template_add(b, b->config->image, (uint32_t)mib, &t, ret_f))
			return ret_f->rc;
	}
	loop_timer_set(b->templates->pump, now_ms());
	return RC_OK;
}

void templates_free(struct broker *b)
{
	struct template_set *s = b->templates;

	if (!s)
		return;
	build_free(s->build);
	source_drop(&s->pump);
	while (s->first) {
		struct template *t = s->first;

		s->first = t->next;
		while (t->waits)
			template_cancel(t->waits);
		use_close(b, &t->use);
		free(t);
	}
	free(s);
	b->templates = NULL;
}

void templates_describe(struct broker *b, char *out, size_t size)
{
	static const char *const states[] = { "waiting", "being made", "ready", "failed" };
	size_t n = 0;

	out[0] = '\0';
	for (const struct template *t = b->templates->first; t && n < size; t = t->next) {
		int k = snprintf(out + n, size - n, "%s%u MiB %s", n ? ", " : "", t->memory_mib, states[t->state]);

		n += k > 0 ? (size_t)k : 0;
	}
}
