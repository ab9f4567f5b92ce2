"""Soak of the whole service: a real daemon under real load is harmed at random, and nothing may be lost or left.

plan.py ──what happens, from a seed──▶ soak.py ──▶ faults.py ──signals, full disk, I/O errors, floods──▶ victim.py
                                          │                                                             the daemon
                                          └──▶ traffic.py ──tasks, writes──▶ ledger.py ◀── audit.py: is it all there?
"""
