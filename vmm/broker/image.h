/* SPDX-License-Identifier: Apache-2.0 */
/* The operator's images: images/<name>/ has kernel, initrd, root.erofs and image.json. */
#ifndef NB_BROKER_IMAGE_H
#define NB_BROKER_IMAGE_H

#include "vmm/broker/machine.h"

/* Where image.json has no "cmdline". */
#define IMAGE_CMDLINE "console=ttyS0 loglevel=4 panic=-1"

/* Its directory (ret_dirfd may be NULL) and its root. RC_ABSENT if there is none. */
enum rc image_open(struct broker *b, const char *image, int *ret_dirfd, int *ret_fd, struct fault *ret_f);

/* Size and date of an image's root, as text: another one of the same name has another. A machine that has read some of it cannot
 * go on with anything else. */
enum rc image_tag(int image_fd, char out[MACHINE_TAG_MAX], struct fault *ret_f);

/* What a cold start needs. */
struct image_boot {
	int kernel_fd, initrd_fd;
	char *cmdline;
};
enum rc image_boot_open(int image_dirfd, const char *image, struct image_boot *ret, struct fault *ret_f);
void image_boot_close(struct image_boot *boot);

#endif
