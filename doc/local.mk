# SPDX-License-Identifier: Apache-2.0
# Manual pages of programs are named by the programs' own lists.
dist_man_MANS += doc/man/nestbox-vmm.8 doc/man/nestbox.conf.5
EXTRA_DIST += doc

# Test programs that are scripts: all there are, so that a new one is not forgotten. (The directories themselves can't be in
# EXTRA_DIST: below a build directory they hold objects.)
dist-hook:
	(cd $(srcdir) && find tests .ci \( -name node_modules -prune \) -o -type f \( -name '*.mjs' -o -name '*.mts' -o -name '*.sh' \
		-o -path 'tests/kvmbed/*' -o -path 'tests/lib/*' -o -path 'tests/soak/*' -o -path '.ci/*' \) -print0 | \
		tar -cf - --null -T -) | tar -xf - -C $(distdir)
	rm -f $(distdir)/demo/node_modules $(distdir)/tests/node_modules
