/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/broker/image.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "vmm/broker/limits.h"

#include <fcntl.h>
#include <json-c/json.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum rc image_open(struct broker *b, const char *image, int *ret_dirfd, int *ret_fd, struct fault *ret_f)
{
	_cleanup_fd_ int dirfd = openat(b->images_dirfd, image, O_RDONLY | O_DIRECTORY | O_CLOEXEC), fd = -1;

	if (dirfd < 0)
		return fault_set(ret_f, RC_ABSENT, errno, "no image '%s'", image);
	fd = openat(dirfd, "root.erofs", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return fault_set(ret_f, RC_ABSENT, errno, "image '%s' has no root.erofs", image);
	if (ret_dirfd)
		*ret_dirfd = take_fd(&dirfd);
	*ret_fd = take_fd(&fd);
	return RC_OK;
}

enum rc image_tag(int image_fd, char out[MACHINE_TAG_MAX], struct fault *ret_f)
{
	struct stat st;

	if (fstat(image_fd, &st) < 0)
		return fault_set(ret_f, RC_SYS, errno, "stat image");
	snprintf(out, MACHINE_TAG_MAX, "%lld-%lld.%ld", (long long)st.st_size, (long long)st.st_mtim.tv_sec,
		 st.st_mtim.tv_nsec);
	return RC_OK;
}

/* The image knows how its kernel is started; what an accelerator needs besides, the engine adds. */
static enum rc cmdline_read(int image_dirfd, char **ret, struct fault *ret_f)
{
	_cleanup_free_ char *text = NULL;
	struct json_object *root, *v;
	size_t n;
	enum rc rc = file_read_at(image_dirfd, "image.json", IMAGE_JSON_MAX, &text, &n, ret_f);

	if (rc)
		return rc;
	root = json_tokener_parse(text);
	if (json_object_is_type(root, json_type_object) && json_object_object_get_ex(root, "cmdline", &v) &&
	    json_object_is_type(v, json_type_string))
		*ret = strdup(json_object_get_string(v));
	else
		*ret = strdup(IMAGE_CMDLINE);
	json_object_put(root);
	return *ret ? RC_OK : fault_set(ret_f, RC_NOMEM, 0, "out of memory");
}

enum rc image_boot_open(int image_dirfd, const char *image, struct image_boot *ret, struct fault *ret_f)
{
	_cleanup_fd_ int kernel = openat(image_dirfd, "kernel", O_RDONLY | O_CLOEXEC);
	_cleanup_fd_ int initrd = openat(image_dirfd, "initrd", O_RDONLY | O_CLOEXEC);
	enum rc rc;

	if (kernel < 0 || initrd < 0)
		return fault_set(ret_f, RC_ABSENT, errno, "image '%s' has no kernel or no initrd", image);
	rc = cmdline_read(image_dirfd, &ret->cmdline, ret_f);
	if (rc)
		return rc;
	ret->kernel_fd = take_fd(&kernel);
	ret->initrd_fd = take_fd(&initrd);
	return RC_OK;
}

void image_boot_close(struct image_boot *boot)
{
	close_fd(&boot->kernel_fd);
	close_fd(&boot->initrd_fd);
	free(boot->cmdline);
	boot->cmdline = NULL;
}
