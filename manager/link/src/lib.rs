//! Carriers, lanes and streams: how bytes travel between laptop and cluster.
