/* SPDX-License-Identifier: Apache-2.0 */
/* Encodings of control.h, for both sides. */
#include "vmm/engines/kvm/control.h"

MESSAGE_DEFINE(control_none, CONTROL_NONE_FIELDS)
MESSAGE_DEFINE(control_start, CONTROL_START_FIELDS)
MESSAGE_DEFINE(control_resumed, CONTROL_RESUMED_FIELDS)
MESSAGE_DEFINE(control_forked, CONTROL_FORKED_FIELDS)
MESSAGE_DEFINE(control_resized, CONTROL_RESIZED_FIELDS)
MESSAGE_DEFINE(control_balloon, CONTROL_BALLOON_FIELDS)
MESSAGE_DEFINE(control_stat, CONTROL_STAT_FIELDS)
