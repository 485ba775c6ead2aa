/* SPDX-License-Identifier: Apache-2.0 */
/* What the table of endpoints points to. doc/api.md says what each takes and answers. */
#ifndef NB_FCGI_HANDLERS_H
#define NB_FCGI_HANDLERS_H

#include "fcgi/request.h"

/* sandboxes.c */
enum api_code sandbox_create(struct request *r);
enum api_code sandbox_connect(struct request *r);
enum api_code sandbox_kill(struct request *r);
enum api_code sandbox_extend(struct request *r);
/* expose.c */
enum api_code sandbox_expose_http(struct request *r);
enum api_code sandbox_expose_ssh(struct request *r);
enum api_code sandbox_expose_vscode(struct request *r);
/* sandbox_list.c */
enum api_code sandbox_list(struct request *r);
enum api_code sandbox_get(struct request *r);

#endif
