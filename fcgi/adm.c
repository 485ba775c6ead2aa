/* SPDX-License-Identifier: Apache-2.0 */
/* nestboxadm: organizations and tokens, straight in the database, and the egress ledger; for whoever may read and write these files. */
#include "base/config.h"
#include "base/fd.h"
#include "base/harden.h"
#include "fcgi/adm.h"
#include "fcgi/auth.h"
#include "fcgi/domains.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int usage(FILE *to, int status)
{
	fputs("usage: nestboxadm [-c nestbox.conf] [--json] COMMAND\n"
	      "  org create NAME\n"
	      "  org list\n"
	      "  token create --org NAME [--name TEXT]               one organization's token, ddo_...\n"
	      "  token create --personal --org NAME [--org NAME]...  a person's token, ddp_...; needs X-Deno-Org\n"
	      "  token list [--org NAME]\n"
	      "  token revoke ID\n"
	      "  volume deleted                                      volumes and snapshots that can be restored\n"
	      "  volume restore ID                                   within a day after it was deleted\n"
	      "  domain list                                         names that apps ask for, and that they have\n"
	      "  domain approve HOST [APP]                           once you know that the name is theirs\n"
	      "  domain remove HOST APP\n"
	      "  app list\n"
	      "  app idle APP MS|default                             an idle app sleeps after so long; 0: never\n"
	      "  config KEY                                          what nestbox.conf says, or its default\n"
	      "  egress list|tail|learn [--org NAME]... [--sandbox ID] [--host HOST] [--decision allow|deny|error|dropped]\n"
	      "                         [--since TIME] [--limit N]   what left, what was refused; what would have been enough\n"
	      "  egress evaluate --policy FILE|--sandbox ID HOST [PORT [METHOD [PATH]]]   what a policy decides, and why\n",
	      to);
	return status;
}

static void print_row(struct json_object *row, const char *const *columns)
{
	for (const char *const *c = columns; *c; c++) {
		struct json_object *v = json_get(row, *c);

		printf("%-*s", c[1] ? 26 : 0, v ? json_object_get_string(v) : "-");
	}
	putchar('\n');
}

static void print_list(struct json_object *list, const char *const *columns, bool json)
{
	if (json) {
		puts(json_text(list));
		return;
	}
	for (const char *const *c = columns; *c; c++)
		printf("%-*s", c[1] ? 26 : 0, *c);
	putchar('\n');
	for (size_t i = 0; i < json_object_array_length(list); i++)
		print_row(json_object_array_get_idx(list, i), columns);
}

static enum rc org_list(struct db *db, const struct adm_options *o, struct fault *ret_f)
{
	static const char *const columns[] = { "id", "name", "created", "running", NULL };
	_cleanup_json_ struct json_object *list = json_object_new_array();
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	db_start(&q, db,
		 "SELECT id, name, created_ms, (SELECT count(*) FROM sandboxes s WHERE s.org_id = o.id AND "
		 "s.status != 'stopped') FROM organizations o ORDER BY name");
	while (!(rc = db_row(&q, ret_f))) {
		struct json_object *row = json_object_new_object();

		json_add_str(row, "id", db_col_text(&q, 0));
		json_add_str(row, "name", db_col_text(&q, 1));
		json_add_time(row, "created", db_col_int(&q, 2));
		json_add_int(row, "running", db_col_int(&q, 3));
		json_object_array_add(list, row);
	}
	if (rc != RC_ABSENT)
		return rc;
	print_list(list, columns, o->json);
	return RC_OK;
}

static enum rc token_list(struct db *db, const struct adm_options *o, struct fault *ret_f)
{
	static const char *const columns[] = { "id", "orgs", "kind", "created", "revoked", "name", NULL };
	_cleanup_json_ struct json_object *list = json_object_new_array();
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	db_start(&q, db,
		 "SELECT t.id, t.kind, t.name, t.created_ms, t.last_used_day, t.revoked_ms, group_concat(o.name, ' ') "
		 "FROM tokens t JOIN token_orgs x ON x.token_id = t.id JOIN organizations o ON o.id = x.org_id "
		 "WHERE ?1 IS NULL OR o.name = ?1 GROUP BY t.id ORDER BY t.created_ms");
	db_text(&q, o->n_orgs ? o->orgs[0] : NULL);
	while (!(rc = db_row(&q, ret_f))) {
		struct json_object *row = json_object_new_object();

		json_add_str(row, "id", db_col_text(&q, 0));
		json_add_str(row, "kind", db_col_text(&q, 1));
		json_add_str(row, "name", db_col_text(&q, 2));
		json_add_time(row, "created", db_col_int(&q, 3));
		json_add_time_or_null(row, "last_used", db_col_int(&q, 4) * 86400000);
		json_add_time_or_null(row, "revoked", db_col_int(&q, 5));
		json_add_str(row, "orgs", db_col_text(&q, 6));
		json_object_array_add(list, row);
	}
	if (rc != RC_ABSENT)
		return rc;
	print_list(list, columns, o->json);
	return RC_OK;
}

static enum rc org_create_print(struct db *db, const char *name, const struct adm_options *o, struct fault *ret_f)
{
	char id[ID_MAX];
	enum rc rc = org_create(db, name, id, ret_f);

	if (!rc)
		printf(o->json ? "{\"id\":\"%s\"}\n" : "%s\n", id);
	return rc;
}

static enum rc token_create_print(struct db *db, const struct adm_options *o, struct fault *ret_f)
{
	char token[TOKEN_MAX], id[ID_MAX];
	enum rc rc = token_create(db, o->personal, o->orgs, o->n_orgs, o->name, token, id, ret_f);

	if (rc)
		return rc;
	if (o->json)
		printf("{\"id\":\"%s\",\"token\":\"%s\"}\n", id, token);
	else
		puts(token);
	return RC_OK;
}

static enum rc volume_deleted(struct db *db, const struct adm_options *o, struct fault *ret_f)
{
	static const char *const columns[] = { "id", "org", "slug", "deleted", NULL };
	_cleanup_json_ struct json_object *list = json_object_new_array();
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	db_start(&q, db,
		 "SELECT v.id, o.name, v.slug, v.deleted_ms FROM (SELECT id, org_id, slug, deleted_ms FROM volumes UNION ALL "
		 "SELECT id, org_id, slug, deleted_ms FROM snapshots) v JOIN organizations o ON o.id = v.org_id "
		 "WHERE v.deleted_ms > 1 ORDER BY v.deleted_ms");
	while (!(rc = db_row(&q, ret_f))) {
		struct json_object *row = json_object_new_object();

		json_add_str(row, "id", db_col_text(&q, 0));
		json_add_str(row, "org", db_col_text(&q, 1));
		json_add_str(row, "slug", db_col_text(&q, 2));
		json_add_time(row, "deleted", db_col_int(&q, 3));
		json_object_array_add(list, row);
	}
	if (rc != RC_ABSENT)
		return rc;
	print_list(list, columns, o->json);
	return RC_OK;
}

/* deleted_ms 1: the runner is removing it now. */
static enum rc volume_restore(struct db *db, const char *id, struct fault *ret_f)
{
	static const char *const sqls[] = {
		"UPDATE volumes SET deleted_ms = NULL WHERE id = ? AND deleted_ms > 1 RETURNING id",
		"UPDATE snapshots SET deleted_ms = NULL WHERE id = ? AND deleted_ms > 1 RETURNING id",
	};
	enum rc rc = RC_ABSENT;

	for (size_t i = 0; rc == RC_ABSENT && i < ARRAY_SIZE(sqls); i++) {
		_cleanup_db_q_ struct db_q q = DB_Q_INIT;

		db_start(&q, db, sqls[i]);
		db_text(&q, id);
		rc = db_row(&q, ret_f);
		if (!rc)
			db_row(&q, NULL); /* to its end, so that it takes effect */
	}
	if (rc == RC_EXISTS)
		return fault_set(ret_f, RC_EXISTS, 0, "its slug was taken since");
	return rc == RC_ABSENT ? fault_set(ret_f, RC_ABSENT, 0, "no deleted volume or snapshot '%.60s'", id) : rc;
}

static enum rc domain_list(struct db *db, const struct adm_options *o, struct fault *ret_f)
{
	static const char *const columns[] = { "app", "org", "asked", "approved", "domain", NULL };
	_cleanup_json_ struct json_object *list = json_object_new_array();
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	db_start(&q, db,
		 "SELECT a.slug, o.name, c.created_ms, c.approved_ms, c.host FROM custom_domains c JOIN apps a ON a.id = c.app_id JOIN "
		 "organizations o ON o.id = a.org_id WHERE a.deleted_ms IS NULL ORDER BY c.host, a.slug");
	while (!(rc = db_row(&q, ret_f))) {
		struct json_object *row = json_object_new_object();

		json_add_str(row, "app", db_col_text(&q, 0));
		json_add_str(row, "org", db_col_text(&q, 1));
		json_add_time(row, "asked", db_col_int(&q, 2));
		json_add_time_or_null(row, "approved", db_col_int(&q, 3));
		json_add_str(row, "domain", db_col_text(&q, 4));
		json_object_array_add(list, row);
	}
	if (rc != RC_ABSENT)
		return rc;
	print_list(list, columns, o->json);
	return RC_OK;
}

static enum rc app_id(struct db *db, const char *app, char ret[64], struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	db_start(&q, db, "SELECT id FROM apps WHERE (id = ?1 OR slug = ?1) AND deleted_ms IS NULL ORDER BY id = ?1 DESC");
	db_text(&q, app);
	rc = db_row(&q, ret_f);
	if (rc == RC_ABSENT)
		return fault_set(ret_f, RC_ABSENT, 0, "no app '%.60s'", app);
	if (!rc)
		snprintf(ret, 64, "%s", db_col_text(&q, 0));
	return rc;
}

static enum rc domain_change(struct db *db, bool approve, const char *host, const char *app, struct fault *ret_f)
{
	char id[64];
	enum rc rc = app ? app_id(db, app, id, ret_f) : RC_OK;

	if (rc)
		return rc;
	return approve ? domain_approve(db, host, app ? id : NULL, ret_f) : domain_remove(db, host, id, ret_f);
}

static enum rc app_list_print(struct db *db, const struct adm_options *o, struct fault *ret_f)
{
	static const char *const columns[] = { "id", "slug", "org", "idle_ms", "instances", NULL };
	_cleanup_json_ struct json_object *list = json_object_new_array();
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	enum rc rc;

	db_start(&q, db,
		 "SELECT a.id, a.slug, o.name, a.idle_ms, (SELECT group_concat(i.state, ' ') FROM instances i WHERE i.app_id = a.id AND "
		 "i.state != 'ended') FROM apps a JOIN organizations o ON o.id = a.org_id WHERE a.deleted_ms IS NULL ORDER BY a.slug");
	while (!(rc = db_row(&q, ret_f))) {
		struct json_object *row = json_object_new_object();

		json_add_str(row, "id", db_col_text(&q, 0));
		json_add_str(row, "slug", db_col_text(&q, 1));
		json_add_str(row, "org", db_col_text(&q, 2));
		if (db_col_null(&q, 3))
			json_add_str(row, "idle_ms", NULL);
		else
			json_add_int(row, "idle_ms", db_col_int(&q, 3));
		json_add_str(row, "instances", db_col_text(&q, 4));
		json_object_array_add(list, row);
	}
	if (rc != RC_ABSENT)
		return rc;
	print_list(list, columns, o->json);
	return RC_OK;
}

static enum rc app_idle(struct db *db, const char *app, const char *ms, struct fault *ret_f)
{
	_cleanup_db_q_ struct db_q q = DB_Q_INIT;
	bool standard = !strcmp(ms, "default");
	char id[64];
	enum rc rc = app_id(db, app, id, ret_f);

	if (!rc && !standard && (!*ms || strlen(ms) > 9 || strspn(ms, "0123456789") != strlen(ms)))
		rc = fault_set(ret_f, RC_INVALID, 0, "milliseconds, or 'default'");
	if (rc)
		return rc;
	db_start(&q, db, "UPDATE apps SET idle_ms = ? WHERE id = ?");
	if (standard)
		db_null(&q);
	else
		db_int(&q, strtoll(ms, NULL, 10));
	db_text(&q, id);
	return db_run(&q, ret_f);
}

static enum rc run(const struct config *c, struct db *db, int argc, char **argv, const struct adm_options *o, struct fault *ret_f)
{
	const char *noun = argc > 0 ? argv[0] : "", *verb = argc > 1 ? argv[1] : "";
	bool org = !strcmp(noun, "org"), token = !strcmp(noun, "token"), volume = !strcmp(noun, "volume");
	bool domain = !strcmp(noun, "domain"), app = !strcmp(noun, "app");

	if (org && !strcmp(verb, "create") && argc == 3)
		return org_create_print(db, argv[2], o, ret_f);
	if (org && !strcmp(verb, "list") && argc == 2)
		return org_list(db, o, ret_f);
	if (token && !strcmp(verb, "create") && argc == 2 && o->n_orgs)
		return token_create_print(db, o, ret_f);
	if (token && !strcmp(verb, "list") && argc == 2)
		return token_list(db, o, ret_f);
	if (token && !strcmp(verb, "revoke") && argc == 3)
		return token_revoke(db, argv[2], ret_f);
	if (volume && !strcmp(verb, "deleted") && argc == 2)
		return volume_deleted(db, o, ret_f);
	if (volume && !strcmp(verb, "restore") && argc == 3)
		return volume_restore(db, argv[2], ret_f);
	if (domain && !strcmp(verb, "list") && argc == 2)
		return domain_list(db, o, ret_f);
	if (domain && !strcmp(verb, "approve") && (argc == 3 || argc == 4))
		return domain_change(db, true, argv[2], argc == 4 ? argv[3] : NULL, ret_f);
	if (domain && !strcmp(verb, "remove") && argc == 4)
		return domain_change(db, false, argv[2], argv[3], ret_f);
	if (app && !strcmp(verb, "list") && argc == 2)
		return app_list_print(db, o, ret_f);
	if (app && !strcmp(verb, "idle") && argc == 4)
		return app_idle(db, argv[2], argv[3], ret_f);
	if (!strcmp(noun, "egress"))
		return adm_egress(c, db, argc - 1, argv + 1, o, ret_f);
	return fault_set(ret_f, RC_INVALID, 0, "no such command; nestboxadm --help lists them");
}

/* Options with a text, numbered from 256 in the order of parse(). */
static const char **text_option(struct adm_options *o, int opt)
{
	const char **const texts[] = { &o->sandbox, &o->host, &o->decision, &o->since, &o->limit, &o->policy };

	return opt >= 256 && (size_t)opt < 256 + ARRAY_SIZE(texts) ? texts[opt - 256] : NULL;
}

static int parse(int argc, char **argv, struct adm_options *o)
{
	static const struct option longs[] = { { "json", no_argument, NULL, 'j' },
					       { "org", required_argument, NULL, 'o' },
					       { "name", required_argument, NULL, 'n' },
					       { "personal", no_argument, NULL, 'p' },
					       { "help", no_argument, NULL, 'h' },
					       { "sandbox", required_argument, NULL, 256 },
					       { "host", required_argument, NULL, 257 },
					       { "decision", required_argument, NULL, 258 },
					       { "since", required_argument, NULL, 259 },
					       { "limit", required_argument, NULL, 260 },
					       { "policy", required_argument, NULL, 261 },
					       { 0 } };
	int opt;

	while ((opt = getopt_long(argc, argv, "c:h", longs, NULL)) != -1) {
		if (opt == 'c')
			o->conf = optarg;
		else if (opt == 'j')
			o->json = true;
		else if (opt == 'p')
			o->personal = true;
		else if (opt == 'n')
			o->name = optarg;
		else if (text_option(o, opt))
			*text_option(o, opt) = optarg;
		else if (opt == 'o' && o->n_orgs < ADM_ORGS_MAX)
			o->orgs[o->n_orgs++] = optarg;
		else
			return opt == 'h' ? usage(stdout, 0) : usage(stderr, 2);
	}
	return optind == argc ? usage(stderr, 2) : -1;
}

static enum rc config_print(const struct config *c, const char *key, struct fault *ret_f)
{
#define S(name, def, text)         \
	if (!strcmp(key, #name)) \
		return puts(c->name) < 0 ? RC_SYS : RC_OK;
#define N(name, def, min, max, text) \
	if (!strcmp(key, #name))     \
		return printf("%ju\n", (uintmax_t)c->name) < 0 ? RC_SYS : RC_OK;
	CONFIG_TABLE(S, N)
#undef S
#undef N
	return fault_set(ret_f, RC_INVALID, 0, "nestbox.conf has no key '%.60s'", key);
}

/* All but that works on the database. */
static enum rc with_db(const struct config *c, int argc, char **argv, const struct adm_options *o, struct fault *ret_f)
{
	_cleanup_db_ struct db *db = NULL;
	enum rc rc = RC_OK;

	/* As the workers' user: a file that root made would lock them out. */
	if (getuid() == 0)
		rc = harden_ids(c->user_api, NULL, 0, ret_f);
	umask(0077);
	if (!rc)
		rc = db_open_state(&db, c->state_dir, ret_f);
	if (!rc)
		rc = db_migrate(db, NULL, ret_f);
	return rc ? rc : run(c, db, argc, argv, o, ret_f);
}

int main(int argc, char **argv)
{
	struct adm_options o = { 0 };
	struct config config;
	struct fault f = { 0 };
	int status = parse(argc, argv, &o);
	enum rc rc;

	if (status >= 0)
		return status;
	rc = config_load(&config, o.conf, &f);
	if (!rc && argc - optind == 2 && !strcmp(argv[optind], "config"))
		rc = config_print(&config, argv[optind + 1], &f);
	else if (!rc)
		rc = with_db(&config, argc - optind, argv + optind, &o, &f);
	if (rc) {
		fprintf(stderr, "nestboxadm: %s\n", f.text);
		return rc == RC_INVALID ? 2 : 1;
	}
	return 0;
}
