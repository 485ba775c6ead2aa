-- SPDX-License-Identifier: Apache-2.0
-- An app's instances, newest first: their list, and what is asked of an app whose machines end.
CREATE INDEX instances_by_app ON instances(app_id, created_ms, id);
