/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/broker/login.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "vmm/broker/limits.h"
#include "vmm/broker/machine.h"
#include "vmm/broker/record.h"

#include <string.h>

#define LOGIN_FILE "logins"
#define LOGIN_FILE_MAX ((size_t)LOGINS_MAX * BROKER_LOGIN_KEY_MAX)

static bool key_ok(const char *key)
{
	return strlen(key) == BROKER_LOGIN_KEY_MAX - 1 && strspn(key, "0123456789abcdef") == BROKER_LOGIN_KEY_MAX - 1;
}

int login_parse(char *text, char keys[][BROKER_LOGIN_KEY_MAX])
{
	int n = 0;

	while (*text) {
		char *end = strchr(text, '\n');

		if (!end || n == LOGINS_MAX)
			return -1;
		*end = '\0';
		if (!key_ok(text))
			return -1;
		memcpy(keys[n++], text, BROKER_LOGIN_KEY_MAX);
		text = end + 1;
	}
	return n;
}

static enum rc login_write(struct machine *m, size_t n, struct fault *ret_f)
{
	char text[LOGIN_FILE_MAX], *at = text;

	for (size_t i = 0; i < n; i++) {
		memcpy(at, m->logins[i], BROKER_LOGIN_KEY_MAX - 1);
		at += BROKER_LOGIN_KEY_MAX - 1;
		*at++ = '\n';
	}
	return file_replace_at(m->dirfd, LOGIN_FILE, text, (size_t)(at - text), ret_f);
}

enum rc login_add(struct machine *m, const char *key, struct fault *ret_f)
{
	enum rc rc;

	if (!key_ok(key))
		return fault_set(ret_f, RC_INVALID, 0, "not the hash of a login");
	if (login_find(m->b, key))
		return fault_set(ret_f, RC_STATE, 0, "this login is taken");
	if (m->n_logins == LOGINS_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "machine '%s' has its maximum of %d logins", m->id, LOGINS_MAX);
	memcpy(m->logins[m->n_logins], key, BROKER_LOGIN_KEY_MAX);
	rc = login_write(m, m->n_logins + 1, ret_f);
	if (!rc)
		m->n_logins++;
	return rc;
}

void login_machine_ends(struct machine *m)
{
	for (size_t i = 0; i < m->n_logins; i++)
		broker_event_login_gone(m->b, m->logins[i]);
	m->n_logins = 0;
}

enum rc login_clear(struct machine *m, struct fault *ret_f)
{
	enum rc rc = login_write(m, 0, ret_f);

	if (!rc)
		login_machine_ends(m);
	return rc;
}

struct machine *login_find(struct broker *b, const char *key)
{
	for (size_t i = 0; i < b->n_machines; i++)
		for (size_t k = 0; k < b->machines[i]->n_logins; k++)
			if (!strcmp(b->machines[i]->logins[k], key))
				return b->machines[i];
	return NULL;
}

void login_load(struct machine *m)
{
	_cleanup_free_ char *text = NULL;
	struct fault f = { 0 };
	enum rc rc = file_read_at(m->dirfd, LOGIN_FILE, LOGIN_FILE_MAX, &text, NULL, &f);
	int n;

	if (rc) {
		if (rc != RC_ABSENT)
			log_fault(LOG_LEVEL_WARN, &f, "machine %s", m->id);
		return;
	}
	n = login_parse(text, m->logins);
	if (n < 0)
		log_warn("logins are malformed and dropped machine=%s", m->id);
	else
		m->n_logins = (size_t)n;
}
