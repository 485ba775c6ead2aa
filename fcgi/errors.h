/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every error a client can get: stable code, HTTP status, default message. The body is always {"code", "message"}.
 * INVALID_TOKEN is a word the SDK acts upon. An object of another tenant is answered like one that does not exist.
 */
#ifndef NB_FCGI_ERRORS_H
#define NB_FCGI_ERRORS_H

#define API_ERRORS(X)                                                                                            \
	X(INVALID_TOKEN,            401, "the access token is missing, unknown or revoked")                      \
	X(MISSING_ORG,              400, "this token needs the header X-Deno-Org")                               \
	X(ORG_NOT_FOUND,            404, "no such organization for this token")                                  \
	X(NOT_FOUND,                404, "no such endpoint")                                                     \
	X(METHOD_NOT_ALLOWED,       405, "this endpoint does not take that method")                              \
	X(INVALID_REQUEST,          400, "malformed request")                                                    \
	X(INVALID_JSON,             400, "the body is not valid JSON")                                           \
	X(BODY_TOO_LARGE,           413, "the body is too large")                                                \
	X(UPGRADE_REQUIRED,         426, "this endpoint takes a WebSocket upgrade")                              \
	X(INVALID_CONFIG,           400, "invalid sandbox configuration")                                        \
	X(CONFIG_TOO_LARGE,         431, "the header x-deno-sandbox-config is too long")                         \
	X(INVALID_STOP_AT,          400, "stop_at_ms must lie in the future")                                    \
	X(INVALID_LABELS,           400, "invalid labels")                                                       \
	X(INVALID_MEMORY,           400, "memory_mb is out of range")                                            \
	X(INVALID_CURSOR,           400, "invalid cursor")                                                       \
	X(INVALID_SLUG,             400, "a slug has 2 to 32 of a-z, 0-9 and -, not at an end, and no -- at 3 and 4") \
	X(INVALID_PATH,             400, "invalid path")                                                         \
	X(INVALID_REGION,           400, "unknown region")                                                       \
	X(INVALID_CAPACITY,         400, "capacity must be 300 MB to 20 GB")                                     \
	X(SANDBOX_NOT_FOUND,        404, "no such sandbox")                                                      \
	X(SANDBOX_STOPPED,          409, "the sandbox has stopped")                                              \
	X(SANDBOX_PAUSED,           409, "the sandbox is paused")                                                \
	X(SANDBOX_NOT_FORKABLE,     409, "the sandbox cannot be forked")                                         \
	X(SANDBOX_NOT_CAPTURABLE,   409, "the sandbox cannot be captured")                                       \
	X(CAPTURE_NOT_FOUND,        404, "no such capture")                                                      \
	X(CAPTURE_UNUSABLE,         409, "no machine can start from this capture any more")                      \
	X(CAPTURE_QUOTA_EXCEEDED,   429, "the organization has as many captures as it may")                      \
	X(APP_QUOTA_EXCEEDED,       429, "the organization has as many apps as it may")                          \
	X(NAME_QUOTA_EXCEEDED,      429, "the organization's apps have as many names as they may")               \
	X(VOLUME_QUOTA_EXCEEDED,    429, "the organization has as many volumes and snapshots as it may; deleted ones count for a day") \
	X(STORAGE_QUOTA_EXCEEDED,   429, "the organization stores as much as it may; deleted volumes and snapshots count for a day") \
	X(SANDBOX_QUOTA_EXCEEDED,   429, "the organization has as many running sandboxes as it may")             \
	X(EXPOSURE_QUOTA_EXCEEDED,  429, "the sandbox has as many exposed services as it may")                   \
	X(CAPACITY_EXCEEDED,        503, "the host has no room for another machine")                             \
	X(NO_DISK_SPACE,            507, "the host has no disk space left")                                      \
	X(SANDBOX_START_TIMEOUT,    504, "the sandbox did not start in time")                                    \
	X(SANDBOX_START_FAILED,     502, "the sandbox could not be started")                                     \
	X(SANDBOX_UNREACHABLE,      502, "the sandbox does not answer")                                          \
	X(NODE_UNAVAILABLE,         503, "the host's machine service does not answer")                           \
	X(GATEWAY_UNAVAILABLE,      503, "the host's stream gateway does not answer")                            \
	X(NOT_SUPPORTED,            501, "not supported by this host")                                           \
	X(VOLUME_NOT_FOUND,         404, "no such volume")                                                       \
	X(VOLUME_IN_USE,            409, "the volume is attached to a running sandbox")                          \
	X(VOLUME_NOT_BOOTABLE,      400, "the volume is not bootable")                                           \
	X(SNAPSHOT_NOT_FOUND,       404, "no such snapshot")                                                     \
	X(SNAPSHOT_DAMAGED,         500, "the snapshot does not match its checksum; its operator has to look at it") \
	X(SNAPSHOT_IN_USE,          409, "the snapshot is in use")                                               \
	X(SLUG_TAKEN,               409, "the slug is taken")                                                    \
	X(APP_NOT_FOUND,            404, "no such app")                                                          \
	X(LAYER_NOT_FOUND,          404, "no such layer")                                                        \
	X(LAYER_IN_USE,             409, "the layer is referenced")                                              \
	X(LAYER_CYCLE,              400, "layers include each other in a circle or too deeply")                  \
	X(DOMAIN_NOT_FOUND,          404, "the app has no such domain")                                             \
	X(DOMAIN_EXISTS,             409, "the app has this domain already")                                        \
	X(DOMAIN_QUOTA_EXCEEDED,     429, "the app has as many domains as it may")                                  \
	X(INVALID_DOMAIN,            400, "a domain is a DNS name in lower case of at most 102 bytes, not one of this host")\
	X(ENV_VAR_NOT_FOUND,        404, "no such environment variable")                                         \
	X(REVISION_NOT_FOUND,       404, "no such revision")                                                     \
	X(REVISION_FINISHED,        409, "the revision is finished")                                             \
	X(REVISION_NOT_READY,       409, "the revision has not succeeded")                                       \
	X(REVISION_ACTIVE,          409, "the revision serves traffic")                                          \
	X(INVALID_ENTRYPOINT,       400, "no such entrypoint")                                                   \
	X(INVALID_TREE,             400, "the directory cannot be deployed")                                     \
	X(TREE_TOO_LARGE,           413, "the directory is too large to deploy")                                 \
	X(TOO_MANY_REQUESTS,        429, "too many of the organization's requests wait for machines: try again when one is answered") \
	X(BUSY,                     503, "busy, try again")                                                      \
	X(INTERNAL,                 500, "internal error")

enum api_code {
	API_OK,
#define X(name, status, text) API_##name,
	API_ERRORS(X)
#undef X
	API_N_CODES
};

int api_code_status(enum api_code code);        /* 200 for API_OK */
const char *api_code_name(enum api_code code);  /* "SANDBOX_NOT_FOUND" */
const char *api_code_text(enum api_code code);

#endif
