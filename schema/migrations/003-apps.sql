-- SPDX-License-Identifier: Apache-2.0
-- Apps that sleep, names of their own, and what has to be tidied up after them.

-- running_ms: since when names lead to it. log_seq: the last line of its server that an earlier instance of the same memory has
-- logged. warm: it began from a capture. capture: the name that one of it has. restarts: of its server inside the machine.
ALTER TABLE instances ADD COLUMN running_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE instances ADD COLUMN log_seq INTEGER NOT NULL DEFAULT 0;
ALTER TABLE instances ADD COLUMN warm INTEGER NOT NULL DEFAULT 0;
ALTER TABLE instances ADD COLUMN capture TEXT NOT NULL DEFAULT '';
ALTER TABLE instances ADD COLUMN restarts INTEGER NOT NULL DEFAULT 0;

-- NULL: app_idle_ms of the configuration; 0: it never sleeps. Set by operators.
ALTER TABLE apps ADD COLUMN idle_ms INTEGER;

-- Memory of a revision's machine after its server had answered, kept by the broker. The name is the revision and a digest of
-- all that its processes were started with, so that one of other variables is never taken.
CREATE TABLE captures (
	name            TEXT PRIMARY KEY,
	revision_id     TEXT NOT NULL REFERENCES revisions(id) ON DELETE CASCADE,
	memory_mib      INTEGER NOT NULL,
	log_seq         INTEGER NOT NULL DEFAULT 0,
	created_ms      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX captures_by_revision ON captures(revision_id);

-- Domains of an app's own, as asked for. Approved by an operator they have a row in domains, too, which is unique.
CREATE TABLE custom_domains (
	app_id          TEXT NOT NULL REFERENCES apps(id) ON DELETE CASCADE,
	host            TEXT NOT NULL,
	created_ms      INTEGER NOT NULL,
	approved_ms     INTEGER,
	PRIMARY KEY (app_id, host)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX custom_domains_approved ON custom_domains(host) WHERE approved_ms IS NOT NULL;

-- Names that were given up, until the runner has taken them from the broker.
CREATE TABLE stale_hosts (
	host            TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;
CREATE TRIGGER domains_gone AFTER DELETE ON domains WHEN old.app_id IS NOT NULL BEGIN
	INSERT OR IGNORE INTO stale_hosts VALUES (old.host);
END;
CREATE INDEX revisions_by_bundle ON revisions(bundle);
