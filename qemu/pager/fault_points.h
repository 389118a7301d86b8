/* SPDX-License-Identifier: MIT */
/*
 * Where a test build (-Dfault_points=true) can kill itself: GHOSTBOX_CRASH_AT=NAME[:N], at the Nth time that it comes
 * by. In other builds there is nothing of it.
 */
#ifndef GHOSTBOX_PAGER_FAULT_POINTS_H
#define GHOSTBOX_PAGER_FAULT_POINTS_H

#define FAULT_POINTS(X)                                                                                              \
    X(fetch_marked)       /* FETCHING, nothing sent */                                                               \
    X(fetch_sent)         /* the read is with the donor */                                                           \
    X(fetch_arrived)      /* the bytes are here and verified */                                                      \
    X(fetch_mapping)      /* MAPPING, before UFFDIO_COPY */                                                          \
    X(fetch_copied)       /* after it, the page is not RESIDENT so far */                                            \
    X(readahead_mapping)  /* MAPPING, before the bytes go into the memfd */                                          \
    X(readahead_written)  /* after it */                                                                             \
    X(zero_mapping)       /* MAPPING, before UFFDIO_ZEROPAGE */                                                      \
    X(zero_mapped)        /* after it */                                                                             \
    X(minor_mapping)      /* MAPPING, before UFFDIO_CONTINUE */                                                      \
    X(minor_mapped)       /* after it */                                                                             \
    X(zap_marked)         /* ZAPPING, nothing sent */                                                                \
    X(zap_sent)           /* the shim may be zapping */                                                              \
    X(zap_answered)       /* zapped, its marks not read */                                                           \
    X(zap_read)           /* the marks are read, the pages not INACTIVE so far */                                    \
    X(zap_dirty)          /* between the dirty flag and INACTIVE */                                                  \
    X(evict_picked)       /* WRITEBACK and DROPPING, nothing done */                                                 \
    X(evict_punched)      /* the hole is punched, the pages are DROPPING */                                          \
    X(evict_absent)       /* the first page of the run is ABSENT */                                                  \
    X(writeback_read)     /* the bytes are staged */                                                                 \
    X(writeback_summed)   /* the checksum is that of the new bytes */                                                \
    X(writeback_sent)     /* the write is on its way */                                                              \
    X(writeback_acked)    /* the donor has it, we have not noted it */                                               \
    X(writeback_stale)    /* copies without it are STALE, the page is dirty */                                       \
    X(writeback_clean)    /* not dirty, and not on a donor so far */                                                 \
    X(writeback_on_donor) /* noted, not DROPPING */                                                                  \
    X(discard_taken)      /* DISCARDING, READY not sent */                                                           \
    X(discard_ready)      /* READY is sent */                                                                        \
    X(discard_ended)      /* END has come, no page knows of it */                                                    \
    X(discard_settling)   /* the first page is settled */                                                            \
    X(discard_settled)    /* all are, DONE is not sent */                                                            \
    X(discard_forgotten)  /* DONE is sent, the donors are being told */                                              \
    X(rebuild_begun)      /* a copy is FILLING, in a slot of its own */                                              \
    X(rebuild_taken)      /* pages are PAGE_F_IO, nothing read */                                                    \
    X(rebuild_read)       /* their bytes are here */                                                                 \
    X(rebuild_written)    /* the FILLING copy has them */                                                            \
    X(rebuild_filled)     /* all are written, the copy is FILLING */                                                 \
    X(rebuild_current)    /* it is CURRENT, none has gone for it */                                                  \
    X(rebuild_dropped)    /* a copy is given up, its slot not trimmed */                                             \
    X(rebuild_trimmed)    /* the slot is trimmed, not noted */                                                       \
    X(forget_copied)      /* the new state file is whole, and has no name */                                         \
    X(forget_named)       /* it has taken the name of the old one */                                                 \
    X(recover_begun)      /* another pager's pages: none looked at */                                                \
    X(recover_half)       /* one of them is */                                                                       \
    X(recover_done)       /* all of them are, nobody is woken */

#ifdef GHOSTBOX_FAULT_POINTS
enum fault_point {
#define X(name) FAULT_POINT_##name,
    FAULT_POINTS(X)
#undef X
        FAULT_POINT_COUNT
};
void fault_point_reached(enum fault_point point);
#define FAULT_POINT(name) fault_point_reached(FAULT_POINT_##name)
#else
#define FAULT_POINT(name) ((void)0)
#endif

#endif
