/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The egress ledger on disk: written by the egress proxy, read by the API.
 *
 *   <state_dir>/logs/egress/<organization>/YYYY-MM-DD-NNN.jsonl     UTC day, part of the day
 *
 * One JSON object a line, in order of time; names sort by age. Every row begins with LEDGER_TIME_HEAD and the time in ISO 8601 with
 * milliseconds, so that a file is searched by halving. Of a guest's bytes a row holds host names, methods and paths without
 * their query, as JSON strings; therefore `"sandbox":"<id>"` stands in a row if and only if the row is that sandbox's.
 *
 *   time       when the row was written: at the end of the connection or request, or when it was refused
 *   sandbox    id               org       name of the organization
 *   protocol   tcp, tls, http (port 80, not read), https (an intercepted request, over HTTP/1.1 or 2, or its
 *              connection), dns (a refused name)
 *   name       what the guest asked for; missing if it went to an address       address, port
 *   decision   allow; deny; error: allowed, but it did not come about; dropped: `count` rows are missing here
 *   rule       what decided     reason    how it ended, where that was not the peers' own end
 *   method, path, status        of a request
 *   secret     name of the secret whose value was put in
 *   bytes_out, bytes_in, duration_ms
 *
 * The line LEDGER_END is the last of a file that another follows. Files go whole, the oldest first.
 */
#ifndef NB_SCHEMA_LEDGER_H
#define NB_SCHEMA_LEDGER_H

#define LEDGER_DIR "logs/egress"
#define LEDGER_SUFFIX ".jsonl"
#define LEDGER_NAME_MAX 32             /* "2026-01-02-003.jsonl" and a terminator */
#define LEDGER_NAME_LEN 20
#define LEDGER_ORG_MAX 64
#define LEDGER_NO_ORG "_"              /* directory of rows that belong to nobody; no organization has this name */
#define LEDGER_ROW_MAX 2048            /* bytes with the newline */
#define LEDGER_TIME_HEAD "{\"time\":\""
#define LEDGER_TIME_LEN 24             /* 2026-01-02T03:04:05.678Z */
#define LEDGER_END "\x04"

#endif
