"""What people look at: tables in the terminal, and reports of one HTML file each.

Nothing here is imported by the metrics; most of it loads matplotlib.
"""
