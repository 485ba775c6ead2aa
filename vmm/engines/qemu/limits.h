/* SPDX-License-Identifier: Apache-2.0 */
#ifndef NB_QEMU_LIMITS_H
#define NB_QEMU_LIMITS_H

#define QMP_LINE_MAX 262144       /* one message of QEMU; its longest here is some hundred bytes */
#define QMP_DEPTH_MAX 16          /* nesting of its JSON */
#define QMP_PENDING_MAX 16        /* commands without an answer yet */
#define QMP_COMMAND_MAX 1024      /* bytes of one command */
#define QMP_ERROR_MAX 120         /* bytes of QEMU's error text that are kept */

#define QEMU_ARGS_MAX 160
#define QEMU_MEMORY_MIB_MAX 1048576
#define QEMU_VCPUS_MAX 16
#define QEMU_TB_MIB 128           /* TCG's translation cache */
#define QEMU_STATE_MAX (64u << 20) /* bytes of device state; measured: 150 KB */
#define QEMU_MANIFEST_MAX 65536
#define QEMU_TSC_PPM_MAX 250      /* a saved machine's clock may be this far off the host's */

#define QEMU_START_MS 30000       /* process start to running, on a busy host */
#define QEMU_COMMAND_MS 20000     /* pause, resume, resize, the answer to an adoption */
#define QEMU_SAVE_MS 300000       /* memory and state to disk */
#define QEMU_FORK_MS 60000
#define QEMU_ASKS_MAX 100000      /* in one operation, whether a written state is final */

#endif
