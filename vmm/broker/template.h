/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Templates: a machine that has booted once, saved, from which every sandbox starts.
 *
 * Theory: templates/<name>/ has the engine's snapshot, the overlay disk as it was in the same instant, and nothing else. name
 * is a hash of all that a machine's state depends on (image.json, engine and its shape, memory, processors, disk size, our version), so
 * a change of any makes a new one and what no hash leads to is removed. It is built below a name that begins with
 * '.', restored once from there, has to answer, and only then gets its name: what has its name is good.
 *
 *   ABSENT -> boot cold -> agent answers -> caches dropped, synced -> paused -> saved, overlay copied -> ended
 *          -> opened -> restored -> agent answers -> ended -> renamed -> READY
 *
 * Any failure is tried again, TEMPLATE_TRIES times in all, keeping the kernel's log in logs/; then FAILED, and whoever asks
 * within TEMPLATE_RETRY_MS gets the reason. One template is made at a time: two cold boots at once take longer than one after the other.
 */
#ifndef NB_BROKER_TEMPLATE_H
#define NB_BROKER_TEMPLATE_H

#include "vmm/broker/broker.h"

struct template_use {
	struct engine_snapshot *snap;
	int overlay_fd, image_fd; /* borrowed */
};

struct template_wait;
/* use is valid as long as the broker lives. */
typedef void template_fn(void *arg, const struct template_use *use, const struct fault *f);

enum rc templates_new(struct broker *b, struct fault *ret_f);
/* Removes what is stale and begins to make those that the configuration asks for. */
enum rc templates_start(struct broker *b, struct fault *ret_f);
void templates_free(struct broker *b);
/*
 * RC_OK: *ret_use is filled and fn will not be called. RC_AGAIN: fn will be called once unless *ret_wait is cancelled.
 * image "": the default.
 */
enum rc template_get(struct broker *b, const char *image, uint32_t memory_mib, template_fn *fn, void *arg,
		     struct template_use *ret_use, struct template_wait **ret_wait, struct fault *ret_f);
void template_cancel(struct template_wait *w); /* NULL is fine */

/* For nestboxctl: "1280 MiB ready, 512 MiB being made". */
void templates_describe(struct broker *b, char *out, size_t size);

#endif
