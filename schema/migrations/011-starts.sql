-- SPDX-License-Identifier: Apache-2.0
-- Revisions that a name leads to and that did not start: how often, when last, and not again before when (fcgi/starts.h).
CREATE TABLE starts (
	revision_id     TEXT PRIMARY KEY REFERENCES revisions(id) ON DELETE CASCADE,
	failures        INTEGER NOT NULL,
	failed_ms       INTEGER NOT NULL,
	retry_ms        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What includes a layer.
CREATE INDEX layer_layers_by_included ON layer_layers(included_id);
