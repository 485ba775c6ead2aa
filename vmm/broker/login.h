/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Logins: names by which the SSH gateway may reach one machine. A name is kept as its SHA-256 in hex, in the machine and in
 * vms/<id>/logins, so it lives exactly as long as the machine's directory and nobody who reads that directory can log in. A clone
 * has none. Whoever asks for a connection must know the name: there is no list of them.
 */
#ifndef NB_BROKER_LOGIN_H
#define NB_BROKER_LOGIN_H

#include "vmm/broker/broker.h"

/* RC_INVALID: no such hash can be; RC_LIMIT: the machine has LOGINS_MAX. */
enum rc login_add(struct machine *m, const char *key, struct fault *ret_f);
/* Of a machine that stays: the file goes first. Connections of these names are told to end. */
enum rc login_clear(struct machine *m, struct fault *ret_f);
/* The machine ends: nobody gets in from now on. */
void login_machine_ends(struct machine *m);
/* NULL if there is none, or the machine is on its way down. */
struct machine *login_find(struct broker *b, const char *key);
/* Of an adopted machine. A file that is not understood lets nobody in. */
void login_load(struct machine *m);
/* For the fuzzer: the text of a file; returns the number of keys, -1 if it is malformed. */
int login_parse(char *text, char keys[][BROKER_LOGIN_KEY_MAX]);

#endif
