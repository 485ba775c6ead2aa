/* SPDX-License-Identifier: Apache-2.0 */
#include "schema/gateway.h"

MESSAGE_DEFINE(gateway_none, MESSAGE_EMPTY)
MESSAGE_DEFINE(gateway_ticket_ws, GATEWAY_TICKET_WS_FIELDS)
MESSAGE_DEFINE(gateway_ticket_log, GATEWAY_TICKET_LOG_FIELDS)
MESSAGE_DEFINE(gateway_stat, GATEWAY_STAT_FIELDS)
MESSAGE_DEFINE(gateway_host, GATEWAY_HOST_FIELDS)
MESSAGE_DEFINE(gateway_host_stat, GATEWAY_HOST_STAT_FIELDS)
