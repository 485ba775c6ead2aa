/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/egress_judge.h"
#include "fcgi/handlers.h"
#include "fcgi/json.h"

enum api_code egress_evaluate(struct request *r)
{
	struct json_object *body = NULL, *o = NULL;
	struct egress_question q;
	struct fault f = { 0 };
	enum api_code code = request_json(r, false, &body);
	enum rc rc;

	if (code)
		return code;
	if (egress_question_parse(body, &q, &f))
		return api_refuse(r, API_INVALID_REQUEST, &f);
	if (!q.policy)
		return api_fail(r, API_INVALID_REQUEST, "a policy is needed: an object of allow_net, secrets and egress");
	rc = egress_judge(&q, r->org_name, r->api->config.egress_allow_private, &o, &f);
	if (rc)
		return rc == RC_INVALID || rc == RC_LIMIT ? api_refuse(r, API_INVALID_CONFIG, &f) : api_fault(r, &f);
	return reply_json(r, 200, o);
}
