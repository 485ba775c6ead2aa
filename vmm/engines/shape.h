/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What of an engine itself the state of a machine depends on, in one short text: part of a template's name, so that templates of an engine
 * that would be another one now are made anew instead of refused, or worse not refused, at each start. It is made of what the engine
 * is run with and of the program it runs, not of a number that somebody has to remember.
 */
#ifndef NB_ENGINE_SHAPE_H
#define NB_ENGINE_SHAPE_H

#include "base/fault.h"

#include <stddef.h>

#define SHAPE_MAX 33 /* 128 bits in hexadecimal digits */

enum rc shape_of(const void *data, size_t n, char out[SHAPE_MAX], struct fault *ret_f);
/* Of all of a regular file. */
enum rc shape_of_file(int fd, char out[SHAPE_MAX], struct fault *ret_f);

#endif
