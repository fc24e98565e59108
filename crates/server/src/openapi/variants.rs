//! Types that are one of several variants, in the form that most makers of clients understand: each
//! variant has a name, and one member says which of them it is.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use utoipa::openapi::schema::{Discriminator, Object, OneOf};
use utoipa::openapi::{Components, Ref, RefOr, Schema};

/// Makes of a type that has one of several kinds, beside members of its own, one of several
/// variants that all have these members.
pub(super) fn spread(components: &mut Components) {
    let kinds = components.schemas.iter().filter_map(|(name, schema)| match schema {
        RefOr::T(Schema::OneOf(kind)) if telling_member(kind).is_some() => {
            Some((location(name), kind.clone()))
        }
        _ => None,
    });
    let kinds: BTreeMap<String, OneOf> = kinds.collect();
    let mut spread = BTreeSet::new();
    for schema in components.schemas.values_mut() {
        let RefOr::T(Schema::AllOf(whole)) = schema else { continue };
        let found = whole.items.iter().find_map(|part| match part {
            RefOr::Ref(part) => kinds.get_key_value(&part.ref_location),
            RefOr::T(_) => None,
        });
        let Some((kind, variants)) = found else { continue };
        let mut variants = variants.clone();
        for variant in &mut variants.items {
            let RefOr::T(Schema::Object(variant)) = variant else { continue };
            for own in whole.items.iter().filter_map(object) {
                variant.properties.extend(own.properties.clone());
                variant.required.extend(own.required.clone());
            }
        }
        variants.description = whole.description.take();
        spread.insert(kind);
        *schema = RefOr::T(Schema::OneOf(variants));
    }
    components.schemas.retain(|name, _| !spread.contains(&location(name)));
}

/// Gives names to variants, and says which member tells them apart.
pub(super) fn name(components: &mut Components) {
    let mut named = Vec::new();
    for (name, schema) in &mut components.schemas {
        let RefOr::T(Schema::OneOf(variants)) = schema else { continue };
        let Some(member) = telling_member(variants) else { continue };
        let mut discriminator = Discriminator::new(&member);
        for variant in &mut variants.items {
            let Some((_, value)) = words(variant).find(|(name, _)| *name == member) else {
                continue;
            };
            let name = format!("{name}{}", capitalized(&value));
            discriminator.mapping.insert(value, location(&name));
            let reference = Ref::from_schema_name(&name).into();
            named.push((name, std::mem::replace(variant, reference)));
        }
        variants.discriminator = Some(discriminator);
    }
    components.schemas.extend(named);
}

fn location(name: &str) -> String {
    Ref::from_schema_name(name).ref_location
}

fn capitalized(word: &str) -> String {
    let mut word = word.to_owned();
    if let Some(first) = word.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    word
}

/// The member that has a word of its own in each of the variants.
fn telling_member(variants: &OneOf) -> Option<String> {
    let (first, rest) = variants.items.split_first()?;
    let in_all =
        |member: &str| rest.iter().all(|variant| words(variant).any(|(name, _)| name == member));
    words(first).map(|(member, _)| member).find(|member| in_all(member))
}

/// Members of a variant that can only be one word, with that.
fn words(variant: &RefOr<Schema>) -> impl Iterator<Item = (String, String)> {
    let objects: Vec<&Object> = match variant {
        RefOr::T(Schema::AllOf(all)) => all.items.iter().filter_map(object).collect(),
        variant => object(variant).into_iter().collect(),
    };
    let members = objects.into_iter().flat_map(|object| &object.properties);
    members.filter_map(|(name, member)| match object(member)?.enum_values.as_deref()? {
        [Value::String(word)] => Some((name.clone(), word.clone())),
        _ => None,
    })
}

fn object(schema: &RefOr<Schema>) -> Option<&Object> {
    match schema {
        RefOr::T(Schema::Object(object)) => Some(object),
        _ => None,
    }
}
