//! (next)
pub(crate) fn all() -> anyhow::Result<()> {
    Ok(())
}
pub(crate) fn need_lab() -> anyhow::Result<()> {
    Ok(())
}
