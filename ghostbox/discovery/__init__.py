# SPDX-License-Identifier: MIT
"""Let donors be found: announce a donor on its networks, and look for donors from a host.

record      what a donor announces, and what of it is accepted     interfaces  which networks are asked, and why
announce    the donor's side, a task of the memserver              browse      the host's side: what is heard
probe       what a donor shows at its address                      found       one row for each donor
scan        all of it, for `ghostbox donor scan`                   doubts      copies and imitations
"""
