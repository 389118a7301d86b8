/* SPDX-License-Identifier: MIT */
/*
 * Fault points: where a test build (-Dfault_points=true) can kill itself. With GHOSTBOX_CRASH_AT=NAME[:N] the pager
 * dies when it reaches the fault point NAME for the Nth time (default 1). Other builds have no code for it. A comment
 * says what is done at the point, and what is not done yet.
 */
#ifndef GHOSTBOX_PAGER_FAULT_POINTS_H
#define GHOSTBOX_PAGER_FAULT_POINTS_H

#define FAULT_POINTS(X)                                                                                              \
    X(fetch_marked)       /* the pages are FETCHING; nothing is sent */                                              \
    X(fetch_sent)         /* the read is on its way to the donor */                                                  \
    X(fetch_arrived)      /* the bytes have come and their checksums are right */                                    \
    X(fetch_mapping)      /* the page is MAPPING; UFFDIO_COPY has not run */                                         \
    X(fetch_copied)       /* UFFDIO_COPY has run; the page is not RESIDENT yet */                                    \
    X(readahead_mapping)  /* the pages are MAPPING; the bytes are not in the memfd */                                \
    X(readahead_written)  /* the bytes are in the memfd; the pages are not INACTIVE yet */                           \
    X(zero_mapping)       /* the pages are MAPPING; UFFDIO_ZEROPAGE has not run */                                   \
    X(zero_mapped)        /* UFFDIO_ZEROPAGE has run; the pages are not RESIDENT yet */                              \
    X(minor_mapping)      /* the pages are MAPPING; UFFDIO_CONTINUE has not run */                                   \
    X(minor_mapped)       /* UFFDIO_CONTINUE has run; the pages are not RESIDENT yet */                              \
    X(zap_marked)         /* the pages are ZAPPING; nothing is sent */                                               \
    X(zap_sent)           /* the shim may be zapping */                                                              \
    X(zap_answered)       /* the shim has zapped; the pagemap's marks are not read */                                \
    X(zap_read)           /* the marks are read; no page is INACTIVE yet */                                          \
    X(zap_dirty)          /* a page has its dirty flag if it was written; it is not INACTIVE yet */                  \
    X(evict_picked)       /* the pages are WRITEBACK or DROPPING; nothing is done */                                 \
    X(evict_punched)      /* the hole is punched; the pages are DROPPING */                                          \
    X(evict_absent)       /* a page of the run is ABSENT; those after it are not */                                  \
    X(writeback_read)     /* the bytes are staged */                                                                 \
    X(writeback_summed)   /* the checksum is that of the new bytes */                                                \
    X(writeback_sent)     /* the write is on its way to the donors */                                                \
    X(writeback_acked)    /* the donor has the bytes; that is not noted */                                           \
    X(writeback_stale)    /* copies without the bytes are STALE; the page is dirty */                                \
    X(writeback_clean)    /* the page is not dirty; its on-donor flag is not set yet */                              \
    X(writeback_on_donor) /* the on-donor flag is set; the page is not DROPPING yet */                               \
    X(discard_taken)      /* the pages are DISCARDING; READY is not sent */                                          \
    X(discard_ready)      /* READY is sent */                                                                        \
    X(discard_ended)      /* END has come; no page is settled */                                                     \
    X(discard_settling)   /* a page is settled; those after it are not */                                            \
    X(discard_settled)    /* all pages are settled; DONE is not sent */                                              \
    X(discard_forgotten)  /* DONE is sent; the donors are being told */                                              \
    X(rebuild_begun)      /* a copy is FILLING, in a slot of its own */                                              \
    X(rebuild_taken)      /* the pages have PAGE_F_IO; nothing is read */                                            \
    X(rebuild_read)       /* the pages' bytes are read */                                                            \
    X(rebuild_written)    /* the FILLING copy has the bytes */                                                       \
    X(rebuild_filled)     /* all pages are written; the copy is still FILLING */                                     \
    X(rebuild_current)    /* the copy is CURRENT; the copy that it replaces is not dropped */                        \
    X(rebuild_dropped)    /* a copy is dropped; its slot is not trimmed */                                           \
    X(rebuild_trimmed)    /* the slot is trimmed; it is not free yet */                                              \
    X(forget_copied)      /* the new state file is whole; it has no name yet */                                      \
    X(forget_named)       /* the new state file has the name of the old one */                                       \
    X(recover_begun)      /* no page of the earlier pager is recovered */                                            \
    X(recover_half)       /* one page is recovered */                                                                \
    X(recover_done)       /* all pages are recovered; no thread is woken */

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
