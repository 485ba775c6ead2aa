/* SPDX-License-Identifier: Apache-2.0 */
/* A guest's DNS message: parsed, and answered in each way that an answer can have. */
#include "vmm/egress/dns.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const struct dns_answer answers[] = {
		{ .rcode = DNS_NXDOMAIN, .blocked = "no allow rule names it" },
		{ .has_address = true, .ttl_s = 60 },
		{ .pointer = "a.test", .ttl_s = 60 },
		{ .rcode = DNS_FORMERR },
	};
	struct dns_question q;
	uint8_t out[1232], reverse[4];
	int rcode = dns_parse(data, size, &q);

	if (rcode < 0)
		return 0;
	if (strlen(q.name) >= sizeof(q.name) || q.question_n > size)
		abort();
	dns_reverse(q.name, reverse);
	for (size_t i = 0; i < sizeof(answers) / sizeof(answers[0]); i++) {
		size_t n = dns_answer(data, &q, &answers[i], out, sizeof(out));

		if (n && (n < DNS_HEAD || memcmp(out, data, 2) || !(out[2] & 0x80)))
			abort();
	}
	return 0;
}
