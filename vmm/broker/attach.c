/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/broker/attach.h"

#include "base/log.h"
#include "vmm/broker/limits.h"
#include "vmm/broker/volume.h"
#include "vmm/store/volume.h"

#include <stdio.h>
#include <string.h>

/* More than a flush: a frozen ext4 needs no recovery, so that its snapshot can be a layer that nobody may write to. */
#define FREEZE "{\"service\":\"control\",\"op\":\"freeze\"}"
#define THAW "{\"service\":\"control\",\"op\":\"thaw\"}"

static bool path_ok(const char *path)
{
	if (path[0] != '/' || !path[1])
		return false;
	for (const char *p = path; *p; p++)
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			return false;
	return true;
}

static const char *text_take(const uint8_t *mem, size_t n, size_t *at)
{
	const char *text = (const char *)mem + *at;
	size_t k = strnlen(text, n - *at);

	if (k == n - *at)
		return NULL;
	*at += k + 1;
	return text;
}

enum rc attach_parse(const uint8_t *mounts, size_t n, struct attach_list *ret, struct fault *ret_f)
{
	struct attach_list list = { 0 };
	size_t at_list;

	for (size_t at = 0; at < n; list.n++) {
		const char *volume = text_take(mounts, n, &at);
		const char *path = volume && at < n ? text_take(mounts, n, &at) : NULL;

		if (!path || !broker_name_ok(volume) || !path_ok(path))
			return fault_set(ret_f, RC_INVALID, 0, "mounts must be pairs of a volume's name and an absolute path");
		if (list.n == AGENT_SPARE_DISKS)
			return fault_set(ret_f, RC_INVALID, 0, "at most %d volumes", AGENT_SPARE_DISKS);
		/* The shorter path first: one volume's mount point may be on another. */
		for (at_list = list.n; at_list && strlen(list.mounts[at_list - 1].path) > strlen(path); at_list--)
			list.mounts[at_list] = list.mounts[at_list - 1];
		list.mounts[at_list].volume = volume;
		list.mounts[at_list].path = path;
	}
	*ret = list;
	return RC_OK;
}

static bool names(const struct machine *m, const char *volume)
{
	for (size_t i = 0; i < MACHINE_VOLUMES; i++)
		if (!strcmp(m->volumes[i], volume))
			return true;
	return false;
}

struct machine *attach_find(struct broker *b, const char *volume)
{
	for (size_t i = 0; i < b->n_machines; i++)
		if (names(b->machines[i], volume))
			return b->machines[i];
	return NULL;
}

static enum rc attach_one(struct machine *m, size_t slot, const char *name, struct volume *ret, struct fault *ret_f)
{
	const struct machine *other;
	enum rc rc;

	if (!broker_name_ok(name))
		return fault_set(ret_f, RC_INVALID, 0, "not a volume's name");
	other = attach_find(m->b, name);
	if (other)
		return fault_set(ret_f, RC_STATE, 0, "volume '%.60s' is attached to machine '%s'", name, other->id);
	if (volume_busy(m->b, name))
		return fault_set(ret_f, RC_AGAIN, 0, "volume '%.60s' is being copied", name);
	rc = volume_open(m->b->volumes_dirfd, name, true, ret, ret_f);
	if (rc)
		return rc;
	/* From now on the machine's, which closes it. */
	m->disks[slot ? DISK_SPARE + slot - 1 : DISK_ROOT] = ret->fd;
	snprintf(m->volumes[slot], sizeof(m->volumes[slot]), "%s", name);
	m->has_volumes = true;
	return RC_OK;
}

enum rc attach_volumes(struct machine *m, const char *root, const struct attach_list *list, struct fault *ret_f)
{
	struct volume v;
	enum rc rc = RC_OK;

	if (*root) {
		rc = attach_one(m, 0, root, &v, ret_f);
		if (!rc && !*v.image)
			rc = fault_set(ret_f, RC_INVALID, 0, "volume '%.60s' is not bootable", root);
		if (!rc)
			snprintf(m->image, sizeof(m->image), "%s", v.image);
	}
	for (size_t i = 0; !rc && i < list->n; i++)
		rc = attach_one(m, 1 + i, list->mounts[i].volume, &v, ret_f);
	return rc;
}

/* --- the end ---------------------------------------------------------------------------------------------------- */

static void on_settled(void *arg, enum rc rc, int fd, struct json_object *answer, const struct fault *f)
{
	struct machine *m = arg;

	(void)fd;
	(void)answer;
	m->settle = NULL;
	if (rc)
		log_warn("machine ended without a flush of its volumes id=%s: %s", m->id, f->text);
	if (!m->exited)
		m->b->engine->ops->stop(m->vm);
}

bool attach_settle(struct machine *m)
{
	struct fault f;

	agent_cancel(m->settle);
	m->settle = NULL;
	if (!agent_call(m->b->loop, &m->net, AGENT_ASK, FREEZE, now_ms() + SETTLE_MS, on_settled, m, &m->settle, &f))
		return true;
	log_fault(LOG_LEVEL_WARN, &f, "flush of the volumes of %s", m->id);
	return false;
}

static void on_thawed(void *arg, enum rc rc, int fd, struct json_object *answer, const struct fault *f)
{
	struct machine *m = arg;

	(void)fd;
	(void)answer;
	m->settle = NULL;
	if (rc)
		log_fault(LOG_LEVEL_WARN, f, "thaw of the volumes of %s", m->id);
}

void attach_thaw(struct machine *m)
{
	struct fault f;

	if (agent_call(m->b->loop, &m->net, AGENT_ASK, THAW, now_ms() + AGENT_ANSWER_MS, on_thawed, m, &m->settle, &f))
		log_fault(LOG_LEVEL_WARN, &f, "thaw of the volumes of %s", m->id);
}

/* --- the record --------------------------------------------------------------------------------------------------- */

void attach_text(const struct machine *m, char out[ATTACH_TEXT_MAX])
{
	size_t n = 0;

	out[0] = '\0';
	for (size_t i = 0; m->has_volumes && i < MACHINE_VOLUMES; i++)
		n += (size_t)snprintf(out + n, ATTACH_TEXT_MAX - n, "%s%s", i ? "," : "", m->volumes[i]);
}

bool attach_from_text(struct machine *m, const char *text)
{
	if (!*text)
		return true;
	for (size_t i = 0; i < MACHINE_VOLUMES; i++) {
		size_t n = strcspn(text, ",");

		if (n >= BROKER_NAME_MAX || (text[n] == ',') != (i + 1 < MACHINE_VOLUMES))
			return false;
		memcpy(m->volumes[i], text, n);
		m->volumes[i][n] = '\0';
		if (n && !broker_name_ok(m->volumes[i]))
			return false;
		text += n + (text[n] == ',');
	}
	m->has_volumes = true;
	return true;
}
