//! What the one who serves the dialects chooses.

use crate::pool::Limits;

/// How requests are answered. A value: it can be changed from one request to the next.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[must_use]
pub struct Config {
    pub(super) evs: Limits,
    pub(super) cbs: Limits,
    pub(super) ucloud: Limits,
    pub(super) region: Option<String>,
    pub(super) caller_project: Option<String>,
    pub(super) company: i64,
    pub(super) admin: bool,
    pub(super) strict_cascade: bool,
    pub(super) null_links: bool,
    pub(super) utc_offset_seconds: i32,
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

impl Config {
    /// Each dialect under the limits of its documents, any region, any project.
    pub fn new() -> Self {
        Self {
            evs: Limits::evs(),
            cbs: Limits::cbs(),
            ucloud: Limits::ucloud(),
            region: None,
            caller_project: None,
            company: 0,
            admin: false,
            strict_cascade: false,
            null_links: false,
            utc_offset_seconds: 0,
        }
    }
    /// The limits for EVS requests; sizes stay whole GiB whatever they say.
    pub fn evs_limits(mut self, limits: Limits) -> Self {
        self.evs = limits;
        self
    }
    /// The limits for CBS requests.
    pub fn cbs_limits(mut self, limits: Limits) -> Self {
        self.cbs = limits;
        self
    }
    /// The limits for UCloud requests.
    pub fn ucloud_limits(mut self, limits: Limits) -> Self {
        self.ucloud = limits;
        self
    }
    /// The region of this store. A request that names another finds nothing; without one, any is its own.
    pub fn region(mut self, name: impl Into<String>) -> Self {
        self.region = Some(name.into());
        self
    }
    /// The caller's project, where the embedder knows it: what belongs to another is not there, and a request that
    /// names another is refused (EVS.0001, 9003, 292). Otherwise any project in a path is served, and CBS and UCloud
    /// callers see all of them.
    pub fn caller_project(mut self, id: impl Into<String>) -> Self {
        self.caller_project = Some(id.into());
        self
    }
    /// The tenant whose store this is: the `CompanyID` of UCloud answers. 0 unless set.
    pub fn company(mut self, id: i64) -> Self {
        self.company = id;
        self
    }
    /// Whether the caller is an administrator, to whom UCloud's `CompanyID` applies: one of another tenant finds
    /// nothing then. Others' is not looked at. Off unless set.
    pub fn admin(mut self, on: bool) -> Self {
        self.admin = on;
        self
    }
    /// Whether deleting a volume that has snapshots needs `cascade=true`, as in OpenStack. Off unless set: they go
    /// with it, as the EVS documents say.
    pub fn strict_cascade(mut self, on: bool) -> Self {
        self.strict_cascade = on;
        self
    }
    /// Whether the link to a next page that is not there is printed as null, as in the EVS samples, or left out.
    pub fn null_links(mut self, on: bool) -> Self {
        self.null_links = on;
        self
    }
    /// In which offset from UTC, in seconds, CBS prints times; at most 26 hours either way. UTC unless set.
    pub fn utc_offset_seconds(mut self, seconds: i32) -> Self {
        self.utc_offset_seconds = seconds.clamp(-93_599, 93_599);
        self
    }
}
