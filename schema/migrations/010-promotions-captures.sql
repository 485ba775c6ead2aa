-- SPDX-License-Identifier: Apache-2.0
-- Promotions as the last word, and captures of sandboxes.

-- When somebody last chose what the timeline shall lead to: a deployment that was asked for before that does not take it.
ALTER TABLE timelines ADD COLUMN promoted_ms INTEGER NOT NULL DEFAULT 0;

-- Sandboxes kept with memory and disk, by the broker below the same id. bytes: 0 while it is taken.
CREATE TABLE sandbox_captures (
	id              TEXT PRIMARY KEY,               -- cap_<region>_<20>
	org_id          TEXT NOT NULL REFERENCES organizations(id),
	sandbox_id      TEXT NOT NULL,                  -- which may be long gone
	region          TEXT NOT NULL,
	memory_mib      INTEGER NOT NULL,
	bytes           INTEGER NOT NULL DEFAULT 0,
	labels          TEXT NOT NULL DEFAULT '{}',
	created_ms      INTEGER NOT NULL
) STRICT;
CREATE INDEX sandbox_captures_by_org ON sandbox_captures(org_id, created_ms, id);
