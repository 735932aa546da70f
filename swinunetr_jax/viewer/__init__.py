"""The viewer: one HTML file that shows a scan and its label maps in a browser, without a server and without the network.

The page contains NiiVue (static/niivue-*.umd.js, BSD-2-Clause), the scan and the label maps.
"""

from swinunetr_jax.viewer.contents import Contents, LabelMap, viewer_contents
from swinunetr_jax.viewer.page import Frame, page_text, write_page, write_sentence

__all__ = ["Contents", "Frame", "LabelMap", "page_text", "viewer_contents", "write_page", "write_sentence"]
