/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nestbox.conf: `key = value` lines, `#` comments. One file for all daemons; unknown keys are an error, so that a
 * typing mistake isn't silently a default. Table of keys with units and defaults: CONFIG_TABLE (doc: nestbox.conf(5)).
 */
#ifndef NB_BASE_CONFIG_H
#define NB_BASE_CONFIG_H

#include "base/fault.h"

#include <stddef.h>
#include <stdint.h>

#define CONFIG_STR_MAX 256

/*      kind key                  default                     what it is */
#define CONFIG_TABLE(S, N)                                                                                      \
	S(state_dir,          NB_LOCALSTATEDIR "/lib/nestbox", "database, images, templates, disks, bundles")   \
	S(run_dir,            NB_RUNSTATEDIR "/nestbox",       "sockets")                                       \
	S(domain,             "nestbox.localhost", "previews and apps are <name>.<domain>; the API is api.<domain>") \
	N(https_port,         443,    1, 65535,      "port in URLs that clients are given")                     \
	S(region,             "ord",                 "three letters, part of every sandbox id")                 \
	S(node,               "local",               "name of this host in records")                            \
	S(engine,             "auto",                "auto, kvm, qemu-kvm or qemu-tcg")                         \
	S(qemu_path,          "/usr/bin/qemu-system-x86_64", "QEMU binary")                                     \
	S(image,              "debian-13",           "default guest image: a directory below <state_dir>/images") \
	N(vm_uid_base,        700000, 1000, 4000000000, "first of the uids that VM processes run as")           \
	N(vm_max,             64,     1, 4096,       "machines on this host at once")                           \
	N(vm_memory_mib_min,  768,    128, 1048576,  "smallest machine")                                        \
	N(vm_memory_mib_max,  4096,   128, 1048576,  "largest machine")                                         \
	N(vm_memory_mib_step, 256,    1, 1048576,    "memory of a machine is rounded up to a multiple of this; each size has its template") \
	N(vm_vcpus,           2,      1, 16,         "virtual processors of a machine")                         \
	N(vm_disk_mib,        10240,  512, 1048576,  "size of the writable overlay disk")                       \
	N(vm_disk_iops,       0,      0, 10000000,   "operations a second of each disk of a machine; 0: no limit") \
	N(vm_disk_mbps,       0,      0, 2147,       "million bytes a second of each disk; 0: no limit")        \
	N(vm_net_pps,         0,      0, 10000000,   "frames a second of a machine, in each direction; 0: no limit") \
	N(vm_net_mbps,        0,      0, 2147,       "million bytes a second, in each direction; 0: no limit")   \
	N(vm_memory_mib_host, 0,      0, 16777216,   "sum of machines' memory; 0: what the host has, less 10 %") \
	N(captures_max,       256,    0, 65536,      "machines kept on disk (captures)")                        \
	N(captures_mib,       65536,  0, 16777216,   "sum of their sizes on disk; 0: no bound")                 \
	S(template_memory_mib, "1280 1024",         "memory sizes for which a template is kept ready, in order")  \
	N(lease_grace_ms,     2000,   0, 600000,     "a connection-bound sandbox lives this long after its connection") \
	N(create_timeout_ms,  60000,  1000, 600000,  "deadline of a create")                                    \
	N(stop_max_s,         0,      0, 31536000,   "longest lifetime a client may ask for; 0: no bound")      \
	N(api_workers,        8,      1, 192,        "FastCGI processes")                                       \
	N(api_workers_max,    96,     4, 192,        "the same, while requests wait for machines")              \
	N(tenant_captures,    16,     0, 65536,      "captures of one organization's sandboxes")                  \
	N(tenant_vms,         32,     1, 4096,       "machines of one organization at once")                    \
	N(tenant_apps,        1000,   1, 1000000,    "apps of one organization")                                \
	N(tenant_names,       4096,   1, 16384,      "host names of one organization's apps together, previews included") \
	N(tenant_volumes,     1000,   0, 1000000,    "volumes and snapshots of one organization, those deleted within a day included") \
	N(tenant_storage_gib, 256,    0, 1048576,    "volumes, snapshots and captures of one organization, and as much of deployed trees; 0: no bound") \
	N(log_keep_mib,       64,     1, 65536,      "kept log bytes of one app")                               \
	N(app_idle_ms,        300000, 0, 604800000,  "an app that nobody visits for so long sleeps; 0: never")  \
	N(build_s,            900,    1, 86400,      "a revision, from its machine to its first answer")         \
	N(build_command_s,    600,    1, 86400,      "one of its commands: install, build, predeploy")          \
	N(build_memory_mib,   1280,   128, 1048576,  "memory of a machine that runs install and build commands") \
	N(app_ready_s,        180,    1, 86400,      "an app's server, from its start to its first answer")     \
	N(captures_max_mib,   20480,  0, 16777216,   "disk for the memory of sleeping apps; 0: they start cold") \
	N(revisions_keep,     100,    1, 100000,     "newest revisions of an app that stay")                    \
	N(bundle_keep_s,      86400,  0, 31536000,   "a deployed tree that no revision has is kept for so long") \
	S(user_api,           "nestbox",             "uid of API workers and runner")                           \
	S(user_gateway,       "nestbox-gw",          "uid of the gateway")                                      \
	S(user_egress,        "nestbox-egress",      "uid of the egress proxy")                                 \
	S(user_ssh,           "nestbox-ssh",         "uid of the SSH gateway")                                  \
	N(ssh_port,           0,      0, 65535,      "port of the SSH gateway; 0: there is none")               \
	S(ssh_listen,         "127.0.0.1",           "address that the SSH gateway listens on")                 \
	S(group_web,          "www-data",            "group of nginx workers")                                  \
	S(egress_resolver,    "",                    "DNS server for upstream names; empty: the host's resolver") \
	S(egress_allow_private, "",                  "space-separated CIDRs that guests may reach although they are private") \
	N(egress_keep_days,   30,     0, 36500,      "days of an organization's egress ledger; 0: for ever")   \
	N(egress_keep_mib,    1024,   1, 16777216,   "kept ledger of one organization")                         \
	N(egress_bytes_per_s, 0,      0, 1125899906842624, "bytes per second of a sandbox, both directions; 0: no limit") \
	N(egress_total_bytes, 0,      0, 1125899906842624, "bytes of a sandbox in its life; 0: no limit")             \
	N(egress_conns_per_s, 0,      0, 200,        "new connections per second of a sandbox; 0: 200")         \
	S(egress_ca_file,     "/etc/ssl/certs/ca-certificates.crt", "roots that upstream TLS is verified against")

struct config {
#define S(key, def, text) char key[CONFIG_STR_MAX];
#define N(key, def, min, max, text) uint64_t key;
	CONFIG_TABLE(S, N)
#undef S
#undef N
};

/* Defaults, then the file. path NULL means the compiled-in one, which may be missing. */
enum rc config_load(struct config *ret, const char *path, struct fault *ret_f);
/* "<dir>/<name>" into out; RC_INVALID if it does not fit. */
enum rc path_join(char *out, size_t size, const char *dir, const char *name, struct fault *ret_f);

#endif
