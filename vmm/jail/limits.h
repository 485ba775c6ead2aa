/* SPDX-License-Identifier: Apache-2.0 */
#ifndef NB_JAIL_LIMITS_H
#define NB_JAIL_LIMITS_H

#define JAIL_FDS_MAX 24       /* descriptors granted to one jailed process */
#define JAIL_MOUNTS_MAX 128   /* files and directories shown in one root */
#define JAIL_ROOT_MS 5000     /* building a root */
#define JAIL_ERROR_MAX 1024   /* bytes of a dead process's last words that are read */

#endif
