/* SPDX-License-Identifier: MIT */
/* How long a donor may be silent before its connection is broken. liveness.h has the rule, in which these count. */
#ifndef GHOSTBOX_PAGER_PATIENCE_H
#define GHOSTBOX_PAGER_PATIENCE_H

/* How often the channel's thread looks at each channel. */
#define LOOK_NS 450000000ull
/* The least patience, in looks: a donor that died is noticed after three to four of them, 1.35 to 1.8 s. */
#define PATIENCE_LOOKS 3u
/* The largest patience, in looks: 60 s. It grows to that while connections are broken for lack of an answer. */
#define PATIENCE_MAX 133u

#endif
