-- SPDX-License-Identifier: Apache-2.0
-- Times are Unix milliseconds. JSON columns hold text that the API has validated. A row that is deleted for clients but
-- still owns something on disk keeps deleted_ms until the runner has removed that.

CREATE TABLE organizations (
	id              TEXT PRIMARY KEY,
	name            TEXT NOT NULL UNIQUE,
	created_ms      INTEGER NOT NULL
) STRICT;

-- kind 'org': ddo_..., belongs to exactly one organization. kind 'personal': ddp_..., to those in token_orgs.
CREATE TABLE tokens (
	id              TEXT PRIMARY KEY,
	hash            BLOB NOT NULL UNIQUE,           -- SHA-256 of the token
	kind            TEXT NOT NULL CHECK (kind IN ('org', 'personal')),
	name            TEXT NOT NULL DEFAULT '',
	created_ms      INTEGER NOT NULL,
	last_used_day   INTEGER NOT NULL DEFAULT 0,     -- days since 1970; a finer clock would mean a write a request
	revoked_ms      INTEGER
) STRICT;

CREATE TABLE token_orgs (
	token_id        TEXT NOT NULL REFERENCES tokens(id) ON DELETE CASCADE,
	org_id          TEXT NOT NULL REFERENCES organizations(id) ON DELETE CASCADE,
	PRIMARY KEY (token_id, org_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE sandboxes (
	id              TEXT PRIMARY KEY,               -- sbx_<region>_<20>; also the broker's id
	org_id          TEXT NOT NULL REFERENCES organizations(id),
	region          TEXT NOT NULL,
	node            TEXT NOT NULL,
	status          TEXT NOT NULL CHECK (status IN ('starting', 'running', 'stopped')),
	lease           INTEGER NOT NULL DEFAULT 0,     -- lives as long as its creating connection
	memory_mib      INTEGER NOT NULL,
	labels          TEXT NOT NULL DEFAULT '{}',
	config          TEXT NOT NULL DEFAULT '{}',     -- as asked for, without secret values
	created_ms      INTEGER NOT NULL,
	stop_at_ms      INTEGER,
	stopped_ms      INTEGER,
	stop_reason     TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX sandboxes_by_org ON sandboxes(org_id, status, created_ms);
CREATE INDEX sandboxes_live ON sandboxes(node, status) WHERE status != 'stopped';

CREATE TABLE volumes (
	id              TEXT PRIMARY KEY,               -- vol_<region>_<20>; also the broker's name
	org_id          TEXT NOT NULL REFERENCES organizations(id),
	slug            TEXT NOT NULL,
	region          TEXT NOT NULL,
	capacity        INTEGER NOT NULL,
	bootable        INTEGER NOT NULL DEFAULT 0,
	base            TEXT NOT NULL DEFAULT '',       -- '', 'builtin:debian-13' or a snapshot id
	base_slug       TEXT NOT NULL DEFAULT '',
	created_ms      INTEGER NOT NULL,
	deleted_ms      INTEGER
) STRICT;
CREATE UNIQUE INDEX volumes_slug ON volumes(org_id, slug) WHERE deleted_ms IS NULL;

CREATE TABLE snapshots (
	id              TEXT PRIMARY KEY,               -- snp_<region>_<20>
	org_id          TEXT NOT NULL REFERENCES organizations(id),
	slug            TEXT NOT NULL,
	region          TEXT NOT NULL,
	volume_id       TEXT NOT NULL,
	volume_slug     TEXT NOT NULL,
	bootable        INTEGER NOT NULL DEFAULT 0,
	allocated       INTEGER NOT NULL DEFAULT 0,
	flattened       INTEGER NOT NULL DEFAULT 0,
	created_ms      INTEGER NOT NULL,
	deleted_ms      INTEGER
) STRICT;
CREATE UNIQUE INDEX snapshots_slug ON snapshots(org_id, slug) WHERE deleted_ms IS NULL;

-- Which running sandbox has which volume; rows go when the sandbox stops.
CREATE TABLE sandbox_volumes (
	sandbox_id      TEXT NOT NULL REFERENCES sandboxes(id) ON DELETE CASCADE,
	volume_id       TEXT NOT NULL UNIQUE REFERENCES volumes(id),
	path            TEXT NOT NULL,                  -- '/' for the root
	PRIMARY KEY (sandbox_id, path)
) STRICT, WITHOUT ROWID;

CREATE TABLE layers (
	id              TEXT PRIMARY KEY,
	org_id          TEXT NOT NULL REFERENCES organizations(id),
	slug            TEXT NOT NULL,
	description     TEXT,
	created_ms      INTEGER NOT NULL,
	updated_ms      INTEGER NOT NULL,
	UNIQUE (org_id, slug)
) STRICT;

CREATE TABLE layer_layers (
	layer_id        TEXT NOT NULL REFERENCES layers(id) ON DELETE CASCADE,
	position        INTEGER NOT NULL,
	included_id     TEXT NOT NULL REFERENCES layers(id),
	PRIMARY KEY (layer_id, position)
) STRICT, WITHOUT ROWID;

CREATE TABLE apps (
	id              TEXT PRIMARY KEY,               -- app_<20>
	org_id          TEXT NOT NULL REFERENCES organizations(id),
	slug            TEXT NOT NULL,
	labels          TEXT NOT NULL DEFAULT '{}',
	config          TEXT NOT NULL DEFAULT '{}',     -- AppConfig
	created_ms      INTEGER NOT NULL,
	updated_ms      INTEGER NOT NULL,
	deleted_ms      INTEGER                         -- the runner stops its machines and then deletes the row
) STRICT;
CREATE UNIQUE INDEX apps_slug ON apps(slug) WHERE deleted_ms IS NULL; -- a slug is a host name, so it is the host's
CREATE INDEX apps_by_org ON apps(org_id, id);

CREATE TABLE app_layers (
	app_id          TEXT NOT NULL REFERENCES apps(id) ON DELETE CASCADE,
	position        INTEGER NOT NULL,
	layer_id        TEXT NOT NULL REFERENCES layers(id),
	PRIMARY KEY (app_id, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX app_layers_by_layer ON app_layers(layer_id, app_id);

-- Of an app or of a layer. A secret's value is sealed (fcgi/seal.h, associated data: this id) and never answered.
CREATE TABLE env_vars (
	id              TEXT PRIMARY KEY,
	app_id          TEXT REFERENCES apps(id) ON DELETE CASCADE,
	layer_id        TEXT REFERENCES layers(id) ON DELETE CASCADE,
	key             TEXT NOT NULL,
	value           TEXT NOT NULL,
	secret          INTEGER NOT NULL DEFAULT 0,
	contexts        TEXT NOT NULL DEFAULT '"all"',  -- JSON: "all" or a list of names
	position        INTEGER NOT NULL,
	CHECK ((app_id IS NULL) != (layer_id IS NULL))
) STRICT;
CREATE INDEX env_vars_by_app ON env_vars(app_id, position);
CREATE INDEX env_vars_by_layer ON env_vars(layer_id, position);

-- status is the client's word, stage the runner's place in the work:
--   queued/queued -> building/preparing -> building/installing -> building/building -> building/deploying
--   -> succeeded/done | failed/done (failure_reason: error, cancelled, timed_out, skipped) | skipped/done
-- A cancel sets cancel_requested_ms; whoever has the revision then (the runner, or the API while it is queued) ends it.
CREATE TABLE revisions (
	id              TEXT PRIMARY KEY,               -- 12 of [0-9a-hjkmnp-z]; part of a host name
	app_id          TEXT NOT NULL REFERENCES apps(id) ON DELETE CASCADE,
	status          TEXT NOT NULL CHECK (status IN ('queued', 'building', 'succeeded', 'failed', 'skipped')),
	stage           TEXT NOT NULL DEFAULT 'queued' CHECK (stage IN
	                ('queued', 'preparing', 'installing', 'building', 'deploying', 'done')),
	failure_reason  TEXT CHECK (failure_reason IN ('error', 'cancelled', 'timed_out', 'skipped')),
	failure         TEXT NOT NULL DEFAULT '',       -- one sentence for people
	labels          TEXT NOT NULL DEFAULT '{}',
	layers          TEXT NOT NULL DEFAULT '[]',     -- [{id, slug}] in order
	env_vars        TEXT NOT NULL DEFAULT '[]',     -- [{key, value}]: this revision's own
	config          TEXT NOT NULL DEFAULT '{}',     -- RevisionConfig
	production      INTEGER NOT NULL DEFAULT 1,
	preview         INTEGER NOT NULL DEFAULT 0,
	bundle          TEXT NOT NULL DEFAULT '',       -- SHA-256, names <state_dir>/bundles/<bundle>.tar.zst
	bundle_bytes    INTEGER NOT NULL DEFAULT 0,
	created_ms      INTEGER NOT NULL,
	started_ms      INTEGER,
	cancel_requested_ms INTEGER,
	build_finished_ms INTEGER,
	deleted_ms      INTEGER
) STRICT;
CREATE INDEX revisions_by_app ON revisions(app_id, created_ms, id);
CREATE INDEX revisions_open ON revisions(status) WHERE status IN ('queued', 'building');

-- Where traffic goes: slug 'production', and 'preview/<revision id>' for each preview. revision_id is what serves (NULL: nothing
-- yet); the runner sets it and desired_revision_id once the revision has answered. A rollback is an UPDATE of
-- desired_revision_id to a revision that succeeded.
CREATE TABLE timelines (
	app_id          TEXT NOT NULL REFERENCES apps(id) ON DELETE CASCADE,
	slug            TEXT NOT NULL,
	context         TEXT NOT NULL CHECK (context IN ('production', 'preview')),
	revision_id     TEXT REFERENCES revisions(id) ON DELETE SET NULL,
	desired_revision_id TEXT REFERENCES revisions(id) ON DELETE SET NULL,
	updated_ms      INTEGER NOT NULL,
	PRIMARY KEY (app_id, slug)
) STRICT, WITHOUT ROWID;

-- Every name below the domain, of previews of sandboxes and of apps alike, so that none can take another's.
CREATE TABLE domains (
	host            TEXT PRIMARY KEY,
	sandbox_id      TEXT REFERENCES sandboxes(id) ON DELETE CASCADE,
	app_id          TEXT REFERENCES apps(id) ON DELETE CASCADE,
	timeline        TEXT,                           -- of the app
	created_ms      INTEGER NOT NULL,
	CHECK ((sandbox_id IS NULL) != (app_id IS NULL))
) STRICT;
CREATE INDEX domains_by_sandbox ON domains(sandbox_id);
CREATE INDEX domains_by_app ON domains(app_id, timeline);

-- Machines that build or serve revisions; written by the runner.
CREATE TABLE instances (
	id              TEXT PRIMARY KEY,               -- the broker's id, rev_<revision>_<n>
	app_id          TEXT NOT NULL REFERENCES apps(id) ON DELETE CASCADE,
	revision_id     TEXT NOT NULL REFERENCES revisions(id) ON DELETE CASCADE,
	node            TEXT NOT NULL,
	state           TEXT NOT NULL CHECK (state IN ('starting', 'building', 'running', 'asleep', 'ended')),
	starts          INTEGER NOT NULL DEFAULT 0,
	created_ms      INTEGER NOT NULL,
	ended_ms        INTEGER,
	reason          TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX instances_live ON instances(state) WHERE state != 'ended';
CREATE INDEX instances_by_revision ON instances(revision_id);
