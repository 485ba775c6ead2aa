/* SPDX-License-Identifier: Apache-2.0 */
/* The environment of a process: defaults, then the machine's (identity), then the request's; a later one replaces. */
#include "guest/agent.h"

#include "base/cleanup.h"

#include <string.h>

#define BUNDLE "/etc/ssl/certs/ca-certificates.crt"

static const char *const defaults[] = {
	"PATH=" AGENT_PATH, "LANG=C.UTF-8", "SHELL=/bin/bash", NULL,
};
/* Programs that bring their own list of authorities, told to use the system's, which has the machine's own in it. */
static const char *const trust[] = {
	"SSL_CERT_FILE=" BUNDLE, "NODE_EXTRA_CA_CERTS=" BUNDLE, "DENO_TLS_CA_STORE=system", "REQUESTS_CA_BUNDLE=" BUNDLE,
	"CURL_CA_BUNDLE=" BUNDLE, "GIT_SSL_CAINFO=" BUNDLE, "PIP_CERT=" BUNDLE, NULL,
};

static size_t vec_len(const char *const *v)
{
	size_t n = 0;

	while (v && v[n])
		n++;
	return n;
}

static bool env_set(char **env, size_t *n, const char *entry)
{
	size_t name = (size_t)(strchrnul(entry, '=') - entry) + 1;
	char *copy = strdup(entry);

	if (!copy)
		return false;
	for (size_t i = 0; i < *n; i++)
		if (!strncmp(env[i], entry, name)) {
			free(env[i]);
			env[i] = copy;
			return true;
		}
	env[(*n)++] = copy;
	return true;
}

static bool env_set_all(char **env, size_t *n, const char *const *from)
{
	for (; from && *from; from++)
		if (!env_set(env, n, *from))
			return false;
	return true;
}

enum rc agent_env_add(char **more, struct fault *ret_f)
{
	const char *const *old = (const char *const *)agent.env, *const *new = (const char *const *)more;
	size_t n = 0;
	char **env = calloc(vec_len(old) + vec_len(new) + 1, sizeof(*env));

	if (!env || !env_set_all(env, &n, old) || !env_set_all(env, &n, new)) {
		agent_env_free(env);
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	}
	agent_env_free(agent.env);
	agent.env = env;
	return RC_OK;
}

enum rc agent_env_make(const struct agent_spec *s, char ***ret, struct fault *ret_f)
{
	const char *const *machine = (const char *const *)agent.env, *const *own = (const char *const *)s->env;
	const char *who[] = { s->root ? "HOME=/root" : "HOME=" AGENT_HOME, s->root ? "USER=root" : "USER=app",
			      s->root ? "LOGNAME=root" : "LOGNAME=app", NULL };
	size_t n = 0, max = vec_len(defaults) + vec_len(trust) + vec_len(who) + vec_len(machine) + vec_len(own) + 2;
	char **env = calloc(max, sizeof(*env)), term[80];
	bool ok = env != NULL;

	if (ok && !s->clear_env)
		ok = env_set_all(env, &n, defaults) && env_set_all(env, &n, who) &&
		     (!agent.has_ca || env_set_all(env, &n, trust)) && env_set_all(env, &n, machine);
	if (ok && s->tty) {
		snprintf(term, sizeof(term), "TERM=%s", s->term);
		ok = env_set(env, &n, term);
	}
	if (!ok || !env_set_all(env, &n, own)) {
		agent_env_free(env);
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	}
	*ret = env;
	return RC_OK;
}
