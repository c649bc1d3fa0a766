//! The parameters of lists: pages, order, filters, and the link to the next page.

use std::str::FromStr;

use form_urlencoded::Serializer;

use crate::dialect::call::Call;
use crate::error::Error;
use crate::pool::{MAX_PAGE, Page, SortKey, SortOrder};
use crate::units::VolumeId;

use super::codes::{
    LIMIT, LIMIT_MOST, LIMIT_POSITIVE, METADATA_FILTER, OFFSET, Refusal, SORT_DIR, SORT_KEY, STATUS_FILTER,
    URL, ZONE_FILTER,
};
use super::input::Flag;
use super::scope::{Scope, Version};
use super::shapes::Link;

/// A query; of a parameter that is given twice the last one counts.
pub(super) struct Parameters<'a>(pub(super) &'a [(String, String)]);

impl<'a> Parameters<'a> {
    pub(super) fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// True or false; OpenStack's clients send a number, too.
    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, Refusal> {
        let Some(text) = self.get(name) else { return Ok(None) };
        match (text, Flag::of_text(text)) {
            ("1", _) | (_, Some(Flag(true))) => Ok(Some(true)),
            ("0", _) | (_, Some(Flag(false))) => Ok(Some(false)),
            _ => Err(Refusal::new(URL, format!("{name} is true or false, {text:?} given"))),
        }
    }
}

/// Where a page begins and how long it is.
struct Paging {
    /// 0 to 1,000.
    limit: u32,
    offset: u64,
}

impl Paging {
    fn of(parameters: &Parameters<'_>, version: Version) -> Result<Self, Refusal> {
        let whole = |name, code| match parameters.get(name) {
            None => Ok(None),
            // Digits that are too many for the number are out of any range, but are a number.
            Some(text) => match text.parse::<i128>() {
                Ok(n) => Ok(Some(n)),
                Err(_) => Err(Refusal::new(code, format!("{text:?} given"))),
            },
        };
        let limit = match whole("limit", LIMIT)? {
            None => MAX_PAGE,
            Some(0) if !version.is_v2() => 0,
            Some(n) if n < 1 => return Err(Refusal::new(LIMIT_POSITIVE, format!("{n} given"))),
            Some(n) => match u32::try_from(n) {
                Ok(n) if n <= MAX_PAGE => n,
                _ if !version.is_v2() => MAX_PAGE,
                _ => return Err(Refusal::new(LIMIT_MOST, format!("{n} given"))),
            },
        };
        let offset = match whole("offset", OFFSET)? {
            None => 0,
            Some(n) if n < 0 => return Err(Refusal::new(OFFSET, format!("it is not negative, {n} given"))),
            Some(n) => u64::try_from(n).unwrap_or(u64::MAX),
        };
        Ok(Self { limit, offset })
    }

    fn links(
        &self,
        parameters: &Parameters<'_>,
        base: &str,
        last: Option<String>,
        returned: usize,
    ) -> Option<Vec<Link>> {
        let marker = last.filter(|_| returned == self.limit as usize)?;
        let kept =
            parameters.0.iter().filter(|(key, _)| !["limit", "offset", "marker"].contains(&key.as_str()));
        let query = Serializer::new(String::new())
            .extend_pairs(kept)
            .append_pair("limit", &self.limit.to_string())
            .append_pair("marker", &marker)
            .finish();
        Some(vec![Link { href: format!("{base}?{query}"), rel: "next" }])
    }
}

/// What a list is asked for, whatever it lists.
pub(super) struct Asked<'a> {
    parameters: Parameters<'a>,
    version: Version,
    paging: Paging,
    /// Something is asked for that nothing can be: the list is empty.
    nothing: bool,
}

impl<'a> Asked<'a> {
    pub(super) fn of(call: &'a Call<'_>, version: Version) -> Result<Self, Refusal> {
        let parameters = Parameters(&call.query);
        let paging = Paging::of(&parameters, version)?;
        Ok(Self { parameters, version, paging, nothing: false })
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a str> {
        self.parameters.get(name)
    }

    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, Refusal> {
        self.parameters.flag(name)
    }

    pub(super) fn name(&self) -> Option<&'a str> {
        self.get("name").or(self.get("display_name"))
    }

    /// A status, where no other than a known one is documented; elsewhere nothing is in an unknown one.
    pub(super) fn status<T: FromStr<Err = Error>>(&mut self) -> Result<Option<T>, Refusal> {
        match self.get("status").map(T::from_str).transpose() {
            Ok(status) => Ok(status),
            Err(error) if self.version.is_v2() => Err(Refusal::new(STATUS_FILTER, error.to_string())),
            Err(_) => {
                self.nothing = true;
                Ok(None)
            }
        }
    }

    pub(super) fn zone(&self) -> Result<Option<&'a str>, Refusal> {
        match self.get("availability_zone") {
            Some("") => Err(Refusal::new(ZONE_FILTER, "it is empty")),
            zone => Ok(zone),
        }
    }

    pub(super) fn metadata(&self) -> Result<Vec<(String, String)>, Refusal> {
        self.get("metadata").map_or(Ok(Vec::new()), metadata_filter)
    }

    /// The volume whose snapshots or backups are asked for. One that is gone may have left some, so a UUID need not
    /// name one that is there; the project is a condition of its own.
    pub(super) fn volume(&mut self, scope: &Scope<'_>) -> Result<Option<VolumeId>, Refusal> {
        let Some(text) = self.get("volume_id") else { return Ok(None) };
        let found = match scope.pool.find_volume(text) {
            Err(Error::NotFound { .. }) => text.parse().ok(),
            found => Some(found?),
        };
        self.nothing |= found.is_none();
        Ok(found)
    }

    pub(super) fn matches_nothing(&mut self) {
        self.nothing = true;
    }

    pub(super) fn order(&self) -> Result<Vec<(SortKey, SortOrder)>, Refusal> {
        order(&self.parameters)
    }

    pub(super) fn offset(&self) -> u64 {
        self.paging.offset
    }

    /// The page that `list` gives, asked for so many items; an empty one where there can be none.
    pub(super) fn page<T, Id>(
        &self,
        list: impl FnOnce(u32) -> Result<Page<T, Id>, Error>,
    ) -> Result<(Vec<T>, Option<u64>), Refusal> {
        if self.nothing {
            return Ok((Vec::new(), Some(0)));
        }
        // A page of none is none to the pool; how many there are in all is asked all the same.
        let mut page = list(self.paging.limit.max(1))?;
        page.items.truncate(self.paging.limit as usize);
        Ok((page.items, page.total))
    }

    /// The links behind a list at `base`: a full page has a next one, whether or not something follows.
    pub(super) fn links(&self, base: &str, last: Option<String>, returned: usize) -> Option<Vec<Link>> {
        self.paging.links(&self.parameters, base, last, returned)
    }
}

/// The order that is asked for: `sort_key` and `sort_dir`, or `sort=key:direction,...`.
fn order(parameters: &Parameters<'_>) -> Result<Vec<(SortKey, SortOrder)>, Refusal> {
    let key = |text: &str| match text {
        "id" => Ok(SortKey::Id),
        "status" => Ok(SortKey::Status),
        "size" | "volume_size" => Ok(SortKey::Size),
        "created_at" => Ok(SortKey::CreatedAt),
        "name" | "display_name" => Ok(SortKey::Name),
        other => Err(Refusal::new(SORT_KEY, format!("{other:?} given"))),
    };
    let direction = |text: &str| match text {
        "asc" => Ok(SortOrder::Ascending),
        "desc" => Ok(SortOrder::Descending),
        other => Err(Refusal::new(SORT_DIR, format!("{other:?} given"))),
    };
    let (sort, by, dir) = (parameters.get("sort"), parameters.get("sort_key"), parameters.get("sort_dir"));
    match (sort, by, dir) {
        (None, None, None) => Ok(Vec::new()),
        (None, by, dir) => Ok(vec![(key(by.unwrap_or("created_at"))?, direction(dir.unwrap_or("desc"))?)]),
        (Some(sort), None, None) => {
            let one = |part: &str| {
                let (by, dir) = part.trim().split_once(':').unwrap_or((part.trim(), "desc"));
                Ok((key(by)?, direction(dir)?))
            };
            // More keys than there are say nothing more.
            sort.split(',').take(8).map(one).collect()
        }
        _ => Err(Refusal::new(SORT_KEY, "sort cannot be combined with sort_key and sort_dir")),
    }
}

/// The pairs of a metadata filter: a dictionary of texts as Python or JSON writes it, `{'k': 'v'}`.
fn metadata_filter(text: &str) -> Result<Vec<(String, String)>, Refusal> {
    let mut rest = Dictionary(text);
    let pairs = rest.pairs().filter(|_| rest.0.trim().is_empty());
    pairs.ok_or_else(|| {
        Refusal::new(METADATA_FILTER, format!("a dictionary of texts is needed, {text:?} given"))
    })
}

struct Dictionary<'a>(&'a str);

impl Dictionary<'_> {
    fn eat(&mut self, wanted: char) -> Option<()> {
        self.0 = self.0.trim_start().strip_prefix(wanted)?;
        Some(())
    }

    fn pairs(&mut self) -> Option<Vec<(String, String)>> {
        let mut pairs = Vec::new();
        self.eat('{')?;
        while self.eat('}').is_none() {
            if !pairs.is_empty() {
                self.eat(',')?;
            }
            let key = self.text()?;
            self.eat(':')?;
            pairs.push((key, self.text()?));
        }
        Some(pairs)
    }

    fn text(&mut self) -> Option<String> {
        self.0 = self.0.trim_start();
        self.0 = self.0.strip_prefix('u').unwrap_or(self.0);
        let mut chars = self.0.chars();
        let quote = chars.next().filter(|c| ['\'', '"'].contains(c))?;
        let mut text = String::new();
        loop {
            match chars.next()? {
                '\\' => text.push(chars.next().filter(|c| ['\\', '\'', '"', '/'].contains(c))?),
                end if end == quote => break,
                other => text.push(other),
            }
        }
        self.0 = chars.as_str();
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_filters_are_read_with_either_quote_and_nothing_else_is() {
        let one = |k: &str, v: &str| vec![(k.to_owned(), v.to_owned())];
        assert_eq!(metadata_filter("{'k': 'v'}").unwrap(), one("k", "v"));
        assert_eq!(metadata_filter(r#" {"k":"v\"'"} "#).unwrap(), one("k", "v\"'"));
        assert_eq!(metadata_filter("{u'k': u'v'}").unwrap(), one("k", "v"));
        assert_eq!(metadata_filter("{}").unwrap(), []);
        assert_eq!(metadata_filter("{'a': '1', 'b': ''}").unwrap().len(), 2);
        for bad in [
            "",
            "{",
            "k=v",
            "{'k'}",
            "{'k': 1}",
            "{'k': 'v'",
            "{'k': 'v'} x",
            "{'k': 'v' 'x': 'y'}",
            "{,}",
            "{'k': 'v\\",
        ] {
            assert!(metadata_filter(bad).is_err(), "{bad}");
        }
    }
}
