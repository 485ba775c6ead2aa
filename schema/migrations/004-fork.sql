-- SPDX-License-Identifier: Apache-2.0
ALTER TABLE sandboxes ADD COLUMN paused INTEGER NOT NULL DEFAULT 0;        -- of a running one
ALTER TABLE sandboxes ADD COLUMN forked_from TEXT NOT NULL DEFAULT '';     -- id of its parent, which may be long gone
