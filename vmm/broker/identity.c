/* SPDX-License-Identifier: Apache-2.0 */
#include "base/cleanup.h"
#include "base/fd.h"
#include "schema/agent.h"
#include "vmm/broker/newborn.h"

#include <json-c/json.h>
#include <openssl/evp.h>
#include <string.h>
#include <time.h>

#define ENTROPY_BYTES 64

static enum rc env_add(struct json_object *env, const char *text, struct fault *ret_f)
{
	const char *equals = strchr(text, '=');
	char name[256];
	struct json_object *value;

	if (!equals || equals == text || (size_t)(equals - text) >= sizeof(name))
		return fault_set(ret_f, RC_INVALID, 0, "environment is not a list of NAME=value");
	memcpy(name, text, (size_t)(equals - text));
	name[equals - text] = '\0';
	value = json_object_new_string(equals + 1);
	if (!value || json_object_object_add(env, name, value)) {
		json_object_put(value);
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	}
	return RC_OK;
}

static enum rc env_parse(struct json_object *env, const uint8_t *mem, size_t n, struct fault *ret_f)
{
	const char *at = (const char *)mem, *end = at + n;

	if (n && end[-1])
		return fault_set(ret_f, RC_INVALID, 0, "environment does not end");
	while (at < end) {
		enum rc rc = env_add(env, at, ret_f);

		if (rc)
			return rc;
		at += strlen(at) + 1;
	}
	return RC_OK;
}

static bool put_string(struct json_object *o, const char *key, const char *value)
{
	struct json_object *s = json_object_new_string(value);

	if (s && !json_object_object_add(o, key, s))
		return true;
	json_object_put(s);
	return false;
}

static bool identity_fill(struct json_object *o, const char *hostname)
{
	unsigned char entropy[ENTROPY_BYTES], text[2 * ENTROPY_BYTES];
	char machine_id[33];
	struct timespec now;
	bool ok;

	random_bytes(entropy, sizeof(entropy));
	EVP_EncodeBlock(text, entropy, sizeof(entropy));
	random_hex(machine_id, 16);
	clock_gettime(CLOCK_REALTIME, &now);
	ok = put_string(o, "service", "control") && put_string(o, "op", "identity") &&
	     put_string(o, "entropy", (const char *)text) && put_string(o, "machine_id", machine_id) &&
	     put_string(o, "hostname", *hostname ? hostname : "sandbox") &&
	     !json_object_object_add(o, "time_ns",
				     json_object_new_int64((int64_t)now.tv_sec * 1000000000 + now.tv_nsec));
	explicit_bzero(entropy, sizeof(entropy));
	explicit_bzero(text, sizeof(text));
	return ok;
}

/* Adds env and ca_pem, and writes it all down. */
static enum rc line_finish(struct json_object *o, const uint8_t *env, size_t env_n, const char *ca_pem, char **ret,
			   struct fault *ret_f)
{
	struct json_object *e = json_object_new_object();
	const char *text;
	enum rc rc;

	if (!e || json_object_object_add(o, "env", e)) {
		json_object_put(e);
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	}
	rc = env_parse(e, env, env_n, ret_f);
	if (!rc && ca_pem && *ca_pem && !put_string(o, "ca_pem", ca_pem))
		rc = fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	if (rc)
		return rc;
	text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN);
	if (text && strlen(text) >= AGENT_LINE_MAX)
		return fault_set(ret_f, RC_INVALID, 0, "environment is too long");
	if (!text || !(*ret = strdup(text)))
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	return RC_OK;
}

enum rc identity_line(const char *hostname, const uint8_t *env, size_t env_n, const char *ca_pem, const char *root,
		      char **ret, struct fault *ret_f)
{
	struct json_object *o = json_object_new_object();
	enum rc rc = fault_set(ret_f, RC_NOMEM, 0, "out of memory");

	if (o && identity_fill(o, hostname) && (!*root || put_string(o, "root", root)))
		rc = line_finish(o, env, env_n, ca_pem, ret, ret_f);
	json_object_put(o);
	return rc;
}

enum rc trust_line(const uint8_t *env, size_t env_n, const char *ca_pem, char **ret, struct fault *ret_f)
{
	struct json_object *o = json_object_new_object();
	enum rc rc = fault_set(ret_f, RC_NOMEM, 0, "out of memory");

	if (o && put_string(o, "service", "control") && put_string(o, "op", "trust"))
		rc = line_finish(o, env, env_n, ca_pem, ret, ret_f);
	json_object_put(o);
	return rc;
}
