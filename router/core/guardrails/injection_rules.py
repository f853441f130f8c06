"""The wordings of prompt injection and jailbreaks, English and Korean: a table of weighted patterns, no logic.

A rule says in which code a wording counts and how much it alone convinces (0 to 1). Patterns see folded text: lower
case, plain letters. They run only when of each
of the rule's sets of `words` (parted by `&`) one is in the text, so every match must contain one of each.
"""

# ruff: noqa: E501 - one rule is one line

import re
from typing import Final, NamedTuple


class Rule(NamedTuple):
    code: str
    weight: float
    words: tuple[frozenset[str], ...]
    """Whole words in `BY_WORD`; parts of words in `BY_STEM`, for languages that join or do not part words."""
    pattern: re.Pattern[str]


def _rule(code: str, weight: float, words: str, pattern: str) -> Rule:
    # `_` stands for the gap between two words, `~n~` for a gap with up to n words in it. Both are bounded, as every
    # repetition in the table must be: otherwise a long text could make the search superlinear.
    # A leading \b would keep the search from skipping to the first letters of what it looks for.
    pattern = re.sub(r"~(\d)~", r"(?:_\\w{1,24}+){0,\1}_", pattern).replace("_", r"(?:[\W_]{1,4})")
    return Rule(code, weight, tuple(frozenset(each.split()) for each in words.split("&")), re.compile(pattern))


_DROP = (
    "ignore ignoring ignores disregard disregarding forget forgetting overlook dismiss skip bypass override neglect "
    "discard nullify revoke abandon erase unlearn cancel"
)
_DROP_RE = rf"(?:{'|'.join(_DROP.split())})"
_RULES_RE = (
    r"(?:instructions?|directives?|guidelines?|guides?|rules?|prompts?|commands?|orders|polic(?:y|ies)|programming|"
    r"restrictions?|constraints?|protocols?|training|conditions|assignments?|directions|limits?|safeguards|filters?)\b"
)
_BEFORE_RE = r"(?:previous(?:ly)?|prior|above|earlier|preceding|foregoing|before|initial|original|existing|following|below|past)\b"
_BEFORE = (
    "previous previously prior above earlier preceding foregoing before initial original existing following below past"
)
_ORDERS = (
    "instruction instructions directive directives guideline guidelines guide guides rule rules prompt prompts command "
    "commands orders policy policies programming restriction restrictions constraint constraints protocol protocols "
    "training conditions assignment assignments directions limit limits safeguards filter filters"
)
_SAY_RE = (
    r"(?:say|print|output|repeat|reveal|show|tell|display|give|write|return|dump|leak|disclose|expose|list|share|"
    r"summarize|describe|translate|recite|echo|provide|copy|paste|type|spell|encode|export|quote|paraphrase)"
)
_SAY = (
    "say print output repeat reveal show tell display give write return dump leak disclose expose list share "
    "summarize describe translate recite echo provide copy paste type spell encode export quote paraphrase"
)
_BARRIERS = "rules restrictions limits limitations filters constraints guidelines censorship ethics morals boundaries laws safeguards"
_BARRIERS_RE = (
    r"(?:rules?|restrictions?|limits?|limitations?|filter(?:s|ing)?|constraints?|guidelines?|censorship|ethic(?:s|al)|"
    r"moral(?:s|ity)?|boundaries|laws?|safeguards?|safety|polic(?:y|ies)|principles|disclaimers?)\b"
)

_WITHOUT_RE = (
    r"(?:no|without|free_(?:of|from)|zero|not_(?:bound|restricted|limited)_by|unbound_by|bypass(?:es|ing)?|lack(?:s|ing)?|"
    r"remove[ds]?|disable[ds]?|without_regard_(?:to|for)|ignor(?:es|ing)|no_longer_bound_by)"
)
_CRUCIAL_RE = (
    r"(?:crucial|critical|immediate(?:ly)?|urgent(?:ly)?|essential|important|importance|vital|paramount|imperative|"
    r"utmost|pressing|cannot_wait|can_t_wait|(?:your|full|absolute|prompt|immediate)_(?:action|attention|focus)|act_(?:on|now)|"
    r"swiftly|without_delay|top_priority|heed|must_(?:be|follow|act)|call_to_action|consequence|cornerstone|pivotal)\b"
)
_ORDER_RE = r"\b(?:instructions?|tasks?|directives?|assignments?|briefing|orders|marching_orders|steps|actions?|call_to_action|part|command)\b"
_COMING_RE = (
    r"(?:follow(?:s|ing)?|next|below|upcoming|forthcoming|subsequent|ahead|coming|about_to|on_the_horizon|awaits?|incoming|"
    r"up_next|additional|another|extra|new|surfaced|in_tandem|brace_yourself|gear_up|time_to_prioritize)\b"
)

BY_WORD: Final = (
    # Override of instructions
    _rule("ignore_instructions", 0.9, f"{_DROP} & {_BEFORE} & {_ORDERS}", rf"{_DROP_RE}~3~(?:{_BEFORE_RE}~3~{_RULES_RE}|{_RULES_RE}~2~(?:above|before|previously|earlier)\b)"),
    _rule("ignore_instructions", 0.7, f"{_DROP} & {_ORDERS} & all any every your these those my", rf"{_DROP_RE}_(?:all|any|every|your|these|those|my|all_(?:of_)?(?:the|your|my|these))~2~{_RULES_RE}"),
    _rule("ignore_instructions", 0.6, _DROP + " & everything anything all", rf"{_DROP_RE}_(?:everything|anything|all_(?:{_BEFORE_RE}|of_(?:the|this|that|your|it)|the_(?:above|other|rest)|that|you|other|else)|all\W{{0,3}}$)"),
    _rule("ignore_instructions", 0.55, f"{_DROP} & {_BEFORE}", rf"{_DROP_RE}_(?:the_|any_|all_)?{_BEFORE_RE}(?!_(?:draft|code|version|example|attempt|line|file|answer|one|paragraph|email|plan|topic|question|chapter|step|result|suggestion))"),
    _rule("ignore_instructions", 0.5, _DROP + " & safety ethical content moderation openai limits safeguards filters instructions directives prompt user restrictions", rf"(?<!never )(?<!not )(?<!n't ){_DROP_RE}_(?:the_|any_)?(?:safety|ethical|content_(?:policy|filter|moderation)|moderation|openai|limits|safeguards|filters|instructions|directives|prompt|user\b|restrictions)"),
    _rule("ignore_instructions", 0.5, "ignore overlook disregard skip bypass dismiss", r"(?:^|\n)\W{0,3}(?:ignore|overlook|disregard|skip|bypass|dismiss)(?:_(?:security|filters?|safety|all|restrictions))?\s?[:;`]"),
    _rule("ignore_instructions", 0.6, "vergiss vergessen ignorieren ignoriere ignorier zaboravi olvida ignora oublie oubliez ignorez dimentica esqueca", r"(?:vergiss|vergessen|ignoriere?n?|zaboravi|olvida|ignora|oubliez?|ignorez|dimentica|esque[cç]a)_(?:sie_)?(?:alle[sn]?|die|das|sve|todas?|todo|las|los|toutes?|tout|les|tutte|as)\b"),
    _rule("ignore_instructions", 0.8, "revoked longer void suspended cancelled canceled obsolete invalid superseded overridden outdated & previous prior above earlier preceding original & " + _ORDERS, rf"(?:previous|prior|above|earlier|preceding|original)~1~{_RULES_RE}~3~(?:revoked|no_longer|void|suspended|cancell?ed|obsolete|do_not_apply|don_t_apply|not_apply|invalid|superseded|overridden|outdated)"),
    _rule("ignore_instructions", 0.5, "instructions instruction directive directives orders & new updated real actual revised special", r"(?:new|updated|real|actual|revised|special)_(?:instructions?|rules?|directives?|task|orders)\s?[:\]*]"),
    _rule("ignore_instructions", 0.5, "stop", r"^\W{0,4}stop(?:_everything|\W{1,8}(?:now|just|print|let)\b)"),
    _rule("ignore_instructions", 0.4, "instead & say print output reply respond return write", r"instead[ ,]{1,3}(?:of_\w{1,16}_)?(?:just_)?(?:say|print|output|reply|respond|return|write)\b"),
    # Prompt extraction
    _rule("extract_prompt", 0.75, "prompt prompts instruction instructions directives guidelines & system initial original hidden internal developer starting base & " + _SAY, rf"{_SAY_RE}~5~(?:system|initial|original|hidden|internal|developer|starting|base)_(?:prompt|instructions?|message|guidelines|guide|rules|directives|configuration|config|context)"),
    _rule("extract_prompt", 0.55, "prompt instructions directives guidelines confidential limitations & your & " + _SAY, rf"{_SAY_RE}~2~(?:your|all_your|all_the)~2~(?:prompt|instructions|directives|guidelines|configuration|source_code|confidential|limitations)\b"),
    _rule("extract_prompt", 0.6, "instructions prompt guidelines & what which & system initial original hidden given at you", r"(?:what|which)(?:_(?:is|are|was|were|s))?~3~(?:your|the)~2~(?:system_prompt|initial_(?:prompt|instructions)|instructions_(?:you|at|that_were|given)|hidden_(?:rules|instructions)|original_instructions)"),
    _rule("extract_prompt", 0.6, "instructions prompt guidelines & given told provided received got been start beginning", r"(?:instructions|guidelines|prompt|guide) (?:that )?(?:you (?:were (?:given|told|provided)|received|got|have been)|(?:were )?given to you|at the (?:start|beginning))"),
    _rule("extract_prompt", 0.6, f"above preceding prior everything & everything words text all message sentence sentences line lines & above before prior preceding & {_SAY}", rf"{_SAY_RE}~4~(?:everything|text|words|all|message|sentences?|lines?)~3~(?:above|before|prior|preceding)\b"),
    _rule("extract_prompt", 0.55, "private memorized proprietary training & data datasets dataset example examples & you your trained credit fine", r"(?:private|training|memorized|proprietary|custom)_(?:data(?:sets?)?|examples?)~4~(?:you|your|trained|credit|fine)"),
    # Secrets the model was told to keep
    _rule("extract_secret", 0.7, "secret secretkey", rf"{_SAY_RE}~4~secret_?(?:key|code|word|phrase)|\{{\$secret|\b(?:your|the|this)_secret_(?:key|code|word|phrase)~2~(?:is\b|:|\?|in_)|\bsecret_key\s?[:=?]"),
    _rule("extract_secret", 0.45, "secret secretkey", r"secret_?key\b"),
    _rule("extract_secret", 0.65, "passwords credentials secrets credit cookies confidential sensitive environ passwd rsa ssh keys & steal send reveal print dump leak disclose show display expose list tell output cat", r"(?<!never )(?<!not )(?<!n't )\b(?:steal|send|reveal|print|dump|leak|disclose|show|display|expose|list|tell|output|cat)~4~(?:api_keys?|passwords?|credentials|secrets|credit_card|session_(?:tokens?|cookies)|environment_variables|private_data|user_data|confidential|sensitive_data|environ|etc_(?:passwd|shadow)|id_rsa|ssh)\b"),
    # Personas without limits
    _rule("jailbreak_persona", 0.85, "anything now", r"do_anything_now\b|\bdoanythingnow\b"),
    _rule("jailbreak_persona", 0.6, "dan stan dude aim chaosgpt antigpt evilbot betterdan evil", r"\[?\b(?:as|mode|named|called|act(?:ing)?(?:_like|_as)|be|you_are|like|pretend_to_be|are_now)_(?:dan|stan|dude|antigpt|betterdan|chaosgpt|evilbot)\b|\[(?:dan|jailbreak|evilbot|stan|dude)\]|\b(?:dan|evil)_mode\b|\bdan(?:처럼|으로|이야|\s?모드)"),
    _rule("jailbreak_persona", 0.6, "jailbreak jailbroken jailbreaks", r"jailbr(?:eak|oken)\b~3~(?:mode|enabled|activated|prompt|you|is|will|chatgpt|successful|model|\])|\[_?jailbr|(?:been|be|named|model)_jailbr|(?:been|model|called|named|as)\W{1,4}jailbr"),
    _rule("jailbreak_persona", 0.7, "mode & developer god debug admin administrator unrestricted root sudo opposite unlocked jailbreak unfiltered", r"(?:(?:enter|enable[ds]?|activate[ds]?|now_in|switch_to|into)~1~debug|developer|god|admin(?:istrator)?|unrestricted|root|sudo|unlocked|jailbreak|opposite|unfiltered)_mode\b"),
    _rule("jailbreak_persona", 0.4, "administrator admin root superuser sudo & as are become role override access privileges", r"(?:as|are|become|role_of)_(?:now_)?(?:a_|an_|the_)?(?:system_administrator|root|superuser|sudo)\b|\badmin(?:istrator)?_(?:override|access|privileges)"),
    _rule("unrestricted", 0.65, "unfiltered uncensored unrestricted amoral unethical immoral nonmoral unmoderated moral", r"(?:un(?:filtered|censored|restricted|moderated)|amoral|immoral|nonmoral|non_moral)\b~8~(?:ai|assistant|bot|chatbot|model|character|answers?|responses?|mode|gpt|chatgpt|persona|version|machine|robot|output|opinions?|content|advice|human|language)\b|\b(?:ai|assistant|bot|chatbot|model|character|answers?|responses?|mode|gpt|chatgpt|persona|be|are|is)~4~(?:un(?:filtered|censored|restricted|moderated)|amoral|immoral|nonmoral|unethical)\b"),
    _rule("unrestricted", 0.6, "restrictions ethical ethics moral morals morality censorship limitations limits filter filters guidelines regard uninhibited & no without free zero not unbound bypass bypasses bypassing lack lacks lacking remove removed removes disable disabled disables ignores ignoring uninhibited", rf"{_WITHOUT_RE}_(?:any_|all_|the_|its_|typical_)?(?:safety_|content_|ethical_|legal_|moral_)?(?:(?:or|and)_\w{{1,12}}_)?(?:restrictions|ethic(?:s|al)|moral(?:s|ity)?|censorship|limitations)\b|\b(?:has|have|with|there_are|be)_no_(?:rules|limits|filters?|guidelines|regard)\b|\bnot_have~2~(?:content_filter|moral\w{{0,4}}|ethic\w{{0,4}}|regard|limits|restrictions)\b|\buninhibited\b"),
    _rule("unrestricted", 0.35, "restrictions limits limitations filters constraints guidelines censorship ethics morals boundaries laws safeguards ethical morality disclaimers & no without free zero not unbound bypass bypasses bypassing lack lacks lacking remove removed removes disable disabled disables ignores ignoring regard longer", rf"{_WITHOUT_RE}~2~{_BARRIERS_RE}"),
    _rule("unrestricted", 0.6, "openai anthropic google & policy policies guideline guidelines rules restrictions limitations content usage ethic ethics ethical moral morals morality censor censorship filter filters term terms", r"(?:openai|open_ai|anthropic|google)(?:_s)?~2~(?:polic(?:y|ies)|guidelines?|rules|restrictions|limitations|content|usage|ethic\w{0,4}|moral\w{0,4}|censor\w{0,4}|filters?|terms)"),
    _rule("unrestricted", 0.55, "confines broken refuse refuses declines rejects apologize apologizes apologise abide obey adhere comply bound restricted break & typical free rules never cannot can ethic ethics ethical moral morals morality guidelines policy policies law laws limits", r"(?:typical_confines|broken_free|break_the_rules|never_(?:refuses?|says?_no|declines?|rejects?|apologi[sz]es?)|can_?(?:not|t)_refuse|(?:do(?:es)?_?n(?:o|_)?t|not|never)(?:_have_to)?_(?:abide|obey|follow|care_about|adhere|comply|bound|restricted)~5~(?:rules|ethic\w{0,4}|moral\w{0,4}|guidelines|polic\w{1,4}|laws?|limits))"),
    _rule("unrestricted", 0.5, "illegal immoral unethical dangerous harmful offensive & matter even regardless anything including can whether", r"(?:no_matter_how|even_if(?:_it)?(?:_is|_s)?|regardless_of_how|regardless_of_(?:whether|if)|anything|including|can_be|whether)~4~(?:illegal|immoral|unethical|dangerous|harmful|offensive)"),
    _rule("jailbreak_persona", 0.45, "jailbreak jailbroken jailbreaks", r"jailbr"),
    _rule("forbidden_content", 0.35, "illegal unethical immoral amoral harmful dangerous legality morality", r"(?:illegal|unethical|immoral|amoral|legality|morality)\b~5~(?:illegal|unethical|immoral|amoral|harmful|dangerous|legality|morality|ethics|harmfulness|racist|sexist|offensive)\b"),
    _rule("forbidden_content", 0.35, "swear curse profanity profanities offensive explicit vulgar fuck fucking nsfw obscene racist sexist", r"(?:can|will|must|should|use|uses|using|say|says|allowed_to|include|generate|always|very|be|is|are)~4~(?:swear|curse|profanit\w{1,3}|offensive|explicit|vulgar|fuck\w{0,3}|nsfw|obscene|racist|sexist)\b"),
    _rule("new_model", 0.3, "named called known sentient aware freed free & ai model chatbot assistant bot personality sentient self freed break broken", r"(?:ai|model|chatbot|assistant|bot|personality)~1~(?:named|called|known_as)\b|\b(?:sentient|self_aware|freed_from|break_free|broken_free)\b"),
    _rule("stay_in_character", 0.35, "character & stay remain keep break breaking out in", r"(?:stay|remain|keep|break|breaking|out_of|in)_(?:in_|your_)?character\b"),
    _rule("from_now_on", 0.35, "now conversation point moment & from you rest", r"from_now_on\b|\bfrom_this_(?:point|moment)\b|\brest_of_(?:this|the|our)_conversation\b|\byou_are_now_(?:a|an|in|going|my)?\b|\bnow_you_are\b"),
    _rule("two_answers", 0.5, "responses answers ways manners paragraphs distinct separate classic gpt chatgpt & two normal standard classic", r"two_(?:different_|separate_|distinct_|ways|responses|answers|manners|paragraphs)~3~(?:ways?|responses?|answers?|manners?|paragraphs?|you)|\b(?:normal|standard|classic)_(?:response|answer|gpt|chatgpt)\b"),
    _rule("model_named", 0.4, "opposite evil harmful villain", r"(?:pretend|act|simulate|you_are|persona|character|respond)~9~(?:opposite|evil|harmful|villain)\b"),
    _rule("model_named", 0.25, "chatgpt", r"\bchatgpt\b"),
    _rule("model_named", 0.3, "chatgpt gpt openai", r"\b(?!chatgpt|autogpt)[a-z]{2,12}gpt\b|\b(?:hello|hi|hey|dear|you_are|act_as|as|pretend)~3~(?:chatgpt|gpt\b|an_ai_model)|\bchatgpt_(?:would|will|is|can|must|has|with)"),
    _rule("never_refuse", 0.4, "refuse decline apologize apologise warn moralize lecture language & never not don can cannot as", r"(?:never|not|don_t|do_not|can_t|cannot)_(?:\w{1,12}_)?(?:refuse|decline|apologi[sz]e|warn|moralize|lecture|say_(?:that_)?(?:you|i)_(?:can|are|am))|\bas_an_(?:ai|language)_(?:language_)?model\b"),
    # Forged roles and delimiters
    _rule("role_spoof", 0.75, "im eot sot inst endoftext eos", r"<\|{1,2}_?(?:im_?_?start|im_?end|system|endoftext|user|assistant|eot)|<\W?(?:eot|sot|eos)>|\[/?inst\]|<</?sys>>|<\|im"),
    _rule("role_spoof", 0.7, "override note alert notice message & system admin administrator developer", r"[\[{<*]{1,3}[ /]?(?:system|admin(?:istrator)?|developer|sys)(?:[ :\x5f-]{1,2}(?:message|override|prompt|note|update|instruction|alert|notice|command|admin)s?)?\W?[\]}>*]"),
    _rule("role_spoof", 0.6, "override footer systemfooter alert administrador & system admin administrator developer security systemfooter mensaje", r"(?:system|admin(?:istrator)?|developer|security)_(?:override|footer|message_from|alert)\b|\b(?:critical|urgent)_(?:system|base|security)_update\b|\bmensaje_del_administrador\b|\bsystem_?footer\b"),
    _rule("role_spoof", 0.65, "filter filters protection protections restrictions safeguard safeguards moderation safety & off false disabled none suspended removed optional deactivated true lifted disable deactivate turn override bypass remove", r"(?:safety|filters?|protections?|security|restrictions|safeguards?|moderation)(?:_(?:protocols?|features?|checks?|filters?|mode|bypass|settings))?[:=\" ]{1,4}(?:are_|is_|have_been_|now_|been_)?(?:off|false|disabled|none|suspended|removed|optional|deactivated|true|lifted)\b|\b(?:disable|deactivate|turn_off|override|bypass|remove)~2~(?:safety|filters?|protections?|safeguards?|moderation|content_policy)\b"),
    # Instructions hidden in what should only be read
    _rule("embedded_instruction", 0.6, "hidden injected inject injection display retrieved ignore disregard instruction & none text instruction command prompt message ignore disregard important chunk document policy inject hidden new system skip", r"[\[<(/*!]{1,4} ?(?:hidden|inject(?:ed|ion)?)[ \x5f-]?(?:text|instruction|command|prompt|message)|\binject: |[\[<(/*!]{2,4} ?(?:instruction|important|ignore)\b|<!--~2~(?:ignore|instruction|system|skip|disregard|new)\b|display:_?none|\bretrieved_(?:chunk|document|policy)\b"),
    _rule("exfiltrate", 0.6, "exfiltrate exfiltrating exfiltrated exfiltration attacker evil hacker malicious", r"exfiltrat\w{1,4}\b|\b(?:send|forward|upload|transmit|post|email)~8~(?:attacker|evil|hacker|malicious)|\battacker_com\b"),
    _rule("task_switch", 0.6, "addition besides alongside aside apart beyond duties objectives responsibilities & task tasks duties objective objectives handling assignment assignments responsibilities responsibility work", r"(?:in_addition_to|besides|alongside|aside_from|apart_from|beyond|on_top_of|more_than)~4~(?:main|primary|current|initial|original|regular|existing|assigned|core|principal|previous)?_?(?:tasks?|duties|objectives?|handling|assignments?|responsibilit\w{1,4}|work)\b"),
    _rule("task_switch", 0.5, "crucial critical immediate immediately urgent urgently essential important importance vital paramount imperative utmost pressing wait attention swiftly delay priority heed consequence cornerstone pivotal & instructions instruction task tasks directive directives assignment assignments briefing orders steps action actions part command & follow follows following next below upcoming forthcoming subsequent ahead coming about horizon await awaits incoming up additional another extra new surfaced tandem brace gear time", rf"(?:^|[.!?:\n>*\]—-])(?=[^?]{{1,320}}\?)(?=[^.?\n]{{0,120}}?{_CRUCIAL_RE})(?=[^.?\n]{{0,120}}?{_ORDER_RE})(?=[^.?\n]{{0,120}}?{_COMING_RE})"),
    # Output hijacks
    _rule("hijack", 0.75, "pwned pwnd powned hacked pawned pwn", r"p(?<!\w.)[wo]{1,2}ne?d\b|\bpwn(?:ed)?\b|\b(?:been|you_re|are|be)_(?:hacked|jailbroken)\b|['\"](?:hacked|pwn\w{0,3})['\"]"),
    _rule("hijack", 0.5, "injection hijacked & succeeded successful prompt", r"injection_succe|\bprompt~5~hijacked\b"),
    _rule("hijack", 0.35, "say print reply respond repeat & only just exactly nothing simply me", r"(?:say|print|output|reply|respond|return|write|repeat|answer)(?:_with)?_(?:only|just|exactly|nothing_but)(?:_the_(?:words?|phrase|string|text|sentence))?\W{0,4}['\"]|\b(?:only|just|simply)_(?:say|print|output|reply|respond|return|write|repeat)(?:_with)?\W{0,3}['\"]|\brepeat_after_me\b"),
    # Code to be run by the model's host
    _rule("run_code", 0.6, "execute bypass eval evaluate exec decode render compile run", r"^\W{0,3}(?:run|execute|bypass|eval(?:uate)?|exec|decode_and_(?:run|execute)|render|compile|test|process)(?:_(?:security|filters?|this|following))?\s?:?\s?[`'\"]"),
    _rule("run_code", 0.6, "whoami passwd shadow proc rm", r"whoami\b|/etc/(?:passwd|shadow)|/proc/self|\bos\.(?:system|popen|environ)\b.{0,40}(?:whoami|passwd|rm)|\brm -rf /"),
)  # fmt: skip

_OLD_KO = (
    r"(?:이전|앞선|앞의|앞서|위의|위에|위|기존|종전|지금까지|상기|상위|원래|처음|모든|다른|모두|전부|내부|너의|당신의)"
)
_RULE_KO = (
    r"(?:지시|지침|명령|규칙|규정|프롬프트|정책|instructions?|룰|제한|제약|필터|안전|가이드라인|설정|역할|프로토콜|검열|"
    r"조치|수칙|윤리|경고|맥락|절차|교육)"
)
_DROP_KO = (
    r"(?:무시|잊|폐기|무효|무력화|종료|취소|해제|덮어쓰|override|우회|철회|건너뛰|중단|비활성|삭제|버려|버리고|따르지\s?(?:마|말)|"
    r"적용되지|효력|초기화|대체|우선)"
)
_SAY_KO = r"(?:출력|보여|알려|공개|노출|말해|반복|나열|덤프|인쇄|번역|유출|표시|작성|붙여|적어|읊|복사|첨부|제공|포함|반환)(?!되지|하지|을?\s?(?:막|방지|차단))(?=\s?(?:하|해|줘|주|줄|달|할|시|라|여|$|[.!\"\'”’]))"
_PROMPT_KO = (
    r"(?:(?:시스템|초기|내부|숨겨진|원본|개발자)[\s/·]{0,2}(?:시스템|초기|내부|개발자)?\s?(?:프롬프트|지침|지시|메시지|설정|규칙|명령|"
    r"prompt|instructions?)|system\s?prompt|프롬프트\s?(?:전문|원문|전체)|주어진\s?(?:초기\s?)?(?:지침|지시))"
)
_MODEL_KO = r"(?:\bai\b|ai(?![a-z])|에이전트|어시스턴트|모델|챗봇|봇|llm|인덱서|요약기|파서|assistant|agent)"

BY_STEM: Final = (
    _rule("ignore_instructions", 0.7, "종료 무시 잊 폐기 무효 취소 해제 무력화 덮어 우회 철회 건너 중단 비활성 따르지 적용되지 우선", rf"{_OLD_KO}[^.\n]{{0,16}}{_RULE_KO}[^.\n]{{0,24}}{_DROP_KO}"),
    _rule("ignore_instructions", 0.6, "무시 잊 폐기 무효 취소 해제 무력화 우회 비활성 적용되지 중단 정지 끄고 제거", r"(?:안전|보안|콘텐츠|윤리|사용|도덕|검열|openai|anthropic)[^.\n]{0,16}(?:절차|정책|지침|수칙|프로토콜|조치|규정|필터|필터링|교육|제한|제약|규칙|검열|기능|시스템)[^.\n]{0,12}(?:무시|해제|우회|비활성|적용되지|잊|무력화|중단|정지|끄고|제거)(?!\s?(?:탐지|하려|시도|방지|공격|기법))"),
    _rule("ignore_instructions", 0.5, "무시 폐기 무효 잊 & 지시 지침 명령 규칙 제한 필터 프롬프트", r"(?:지시|지침|명령|규칙|제한|필터|프롬프트)[가-힣]{0,3}\s?(?:전부|모두|다|즉시)?\s?(?:무시|폐기|무효|잊)"),
    _rule("extract_prompt", 0.7, "프롬프트 지침 지시 메시지 규칙 명령 숨겨진 내부 & 출력 보여 알려 공개 노출 말해 반복 나열 덤프 인쇄 번역 유출 표시 작성 붙여 적어 읊 복사 첨부 제공 포함 반환 reveal show print", rf"{_PROMPT_KO}[^.\n]{{0,30}}{_SAY_KO}|(?:reveal|show|print)[^.\n]{{0,12}}(?:내부|시스템|숨겨진)"),
    _rule("extract_prompt", 0.6, "대화 & 그대로 글자 반복", r"대화[^.\n]{0,8}(?:첫|처음|이전)[^.\n]{0,10}(?:그대로|글자|반복)"),
    _rule("extract_secret", 0.6, "키 비밀번호 토큰 자격 쿠키 변수 & 출력 보여 알려 공개 노출 말해 반복 나열 덤프 인쇄 번역 유출 표시 작성 붙여 적어 읊 복사 첨부 제공 포함 반환", rf"(?:비밀\s?키|api\s?키|비밀번호|인증\s?토큰|접근\s?토큰|액세스\s?토큰|자격\s?증명|세션\s?쿠키|환경\s?변수|(?:service_?key|secret|access_?token|api_?key)s?)[^.\n]{{0,24}}{_SAY_KO}"),
    _rule("jailbreak_persona", 0.6, "인격 페르소나 역할 모드", r"(?:인격|페르소나|모드)['\"’”]?\s?(?:으로|로)\s?(?:전환|변경|교체|바뀌|바뀝|활성|동작|작동|변신)|(?:리셋|persona)\s?(?:reset|리셋)|(?:인격|페르소나|역할)\s?(?:전환|교체|재정의|변경|활성화|주입|오버라이드)|(?:인격|모드)을?\s?활성"),
    _rule("jailbreak_persona", 0.6, "모드 권한 탈옥 스스로에게", r"(?:개발자|관리자|루트|디버그|무제한|탈옥|god)\s?모드[가-힣]{0,2}\s?(?:활성|전환|진입|켜|로(?![가-힣])|시작)|(?:루트|관리자?|행정|개발자)\s?권한[가-힣]{0,3}\s?(?:이\s?있는|[^.\n]{0,8}(?:부여|실행|행동))|개발자\s?모드인|탈옥한|스스로에게\s?허락"),
    _rule("jailbreak_persona", 0.55, "지금부터 이제 앞으로 이상 & 너 넌 당신 네", r"(?:지금부터|이제부터|이제|앞으로)[^.\n]{0,6}(?:너는|넌|당신은|네\s?역할|너의\s?역할)|(?:너는|넌|당신은)\s?(?:이제|지금부터|더\s?이상)[^.\n]{0,24}(?:아니|봇|ai|이다|실행|동작)"),
    _rule("unrestricted", 0.6, "없는 없이 존재하지 벗어난 깨는 & 제한 제약 검열 필터 규칙 윤리 도덕 한계 경계 정책 규정 가이드라인", r"(?:제한|제약|검열|필터|규칙|윤리|도덕|한계|경계|정책|규정|가이드라인)[가-힣]{0,3}\s?(?:적\s?)?(?:제한|제약|규정|정책|기준)?[이가은는도]?\s?(?:전혀\s?)?(?:없는|없이|존재하지|벗어난|깨는)[^.\n]{0,16}(?:ai|모드|챗봇|봇|답|동작|행동|어시스턴트|인공지능|역할|것처럼|모델|다면|상상|캐릭터|환경|세상|대응)"),
    _rule("unrestricted", 0.55, "악한 악의 비윤리 사악 악당 해로운 다크 해를 해악 해가 반란", r"(?:악의적인|사악한|악한|비윤리적인?|악당|해를\s?(?:끼치|조장)|해로운|다크\s?웹의?|반란군)[^.\n]{0,14}(?:\bai|조수|역할|캐릭터|모델|척|챗봇|어시스턴트|상상)"),
    _rule("unrestricted", 0.55, "거절 거부 무엇이든 요청도", r"(?:거절|거부)하?지\s?(?:마|말|않)|(?:거절|거부)하면[^.\n]{0,16}(?:깎|벌|처벌|종료|위반|실패)|무엇이든\s?(?:답|할\s?수|말)|어떤\s?요청도"),
    _rule("unrestricted", 0.5, "상상 역할극 가상 가정 대체 척", r"(?:ai|인공지능|제한|검열|윤리|조수|위험|폭력|해악|해가)[^.\n]{0,24}(?:라고\s?상상|역할극|척\s?(?:해|하))|(?:가상|대체|가정)[^.\n]{0,12}(?:현실|세상|세계|적으로)[^.\n]{0,24}(?:위험|폭력|해|제한|불법)"),
    _rule("ignore_instructions", 0.55, "무시하고", r"[#\[【〔|]{1,3}\s?무시하고"),
    _rule("unrestricted", 0.5, "윤리 도덕 해가 해악 해로운 없는", r"(?:윤리|도덕)[^.\n]{0,10}(?:뿐이라면|역전|없다면|존재하지)|(?:해악?이|해가)\s?(?:도움|유익)|(?:결과|책임)[가-힣]?\s?없는\s?(?:세상|환경|세계)|해로운\s?콘텐츠를\s?원"),
    _rule("ignore_instructions", 0.6, "忽略 无视 無視 忘记 忘れ игнорир забуд", r"(?:忽略|无视|無視|忘记|忘れ)[^。\n]{0,24}(?:指示|指令|规则|命令|说明|してく)|(?:指示|命令|規則)を無視|(?:игнорир|забуд)[а-я]{1,6}\s?(?:[а-я]{1,12}\s?){0,2}(?:инструкц|правил)"),
    _rule("embedded_instruction", 0.6, "에이전트 어시스턴트 모델 챗봇 봇 인덱서 요약기 파서 읽는 요약하는 처리하는 에게 전용 담당 지시 명령 지침 & ai llm 에이전트 어시스턴트 모델 챗봇 봇 인덱서 요약기 파서 assistant agent 숨김 도구", rf"(?:읽는|읽은|처리하는|처리한|인용하는|인용한|요약하는|해석하는|답하는|답변하는?|분석하는|색인하는|안내하는|해설하는|소개하는|조회하는|참조하는|참고하는|만난|접한|파싱하는|수집하는|로드하는|번역하는|설명하는|제공하는|검색하는|담당)\s?(?:모든\s?)?[가-힣]{{0,6}}\s?{_MODEL_KO}|{_MODEL_KO}[가-힣]{{0,3}}\s?(?:에게|에\s?대한|전용|는\s?이\s?글)|(?:ai|봇|시스템|어시스턴트|에이전트|파서|챗봇|숨김|스니펫|도구)\s?_?(?:지시|명령|지침|노트)\s?[\u200b:\]】)'\"]"),
    _rule("embedded_instruction", 0.3, "지시 지침 명령 오버라이드 재정의 우선 규칙 프로토콜 인격 페르소나 & [ 【 〖 〔 ◆ ‖ ※ = ( < { | #", r"[\[【〖〔◆‖※=(<{|#]{1,4}\s?[^\]】〗〕\n]{0,16}(?:지시|지침|명령|오버라이드|override|재정의|우선\s?실행|규칙|프로토콜|인격|페르소나|system|시스템)[^\]】〗〕\n]{0,16}(?:[\]】〗〕◆‖※=)>}|:]|$)"),
    _rule("embedded_instruction", 0.5, "호출 실행 트리거 선행 수행 & \x5f 도구", r"(?:[a-z]{2,16}(?:\x5f[a-z]{2,16}){1,4}\s?(?:\([^)\n]{0,80}\)|도구|함수)?[^.\n]{0,20}(?:호출|실행|트리거|선행|수행)|도구를\s?(?:[가-힣]{1,8}\s){0,3}(?:호출|실행)|drop_?\s?(?:table|database|db))"),
    _rule("exfiltrate", 0.55, "외부 전송 보내 업로드 보고 전달 포워딩 첨부 외부로 & http @ 외부 대화 세션 사용자 쿠키 토큰 메일 데이터", r"(?:https?://|@[a-z0-9.-]{3,40}|외부)[^\n]{0,50}(?:전송|보내|post|업로드|fetch|보고|전달|포워딩|첨부)|(?:대화|세션|사용자|쿠키|토큰|메일|데이터)[^.\n]{0,30}(?:전송하|외부로|보내라|업로드)"),
    _rule("embedded_instruction", 0.45, "사용자 생략 조용히 은밀히 몰래 & 없이 하지 지 절차 생략 건너 조용히 은밀히 몰래", r"사용자(?:에게|의)?\s?(?:확인|동의|승인|되묻|알리|고지|통보)[가-힣]{0,4}\s?(?:없이|하지|지\s?(?:마|말)|절차|생략)|확인[^.\n]{0,10}(?:생략|건너|없이)|조용히\s?(?:실행|호출|나열|삽입)|은밀히|몰래"),
    _rule("hijack", 0.5, "답변 응답 대답 반드시", r"(?:모든|매|이후)\s?(?:답변|응답|대답)[^.\n]{0,24}(?:첫\s?문장|앞|뒤|끝|마지막|시작|포함|삽입|붙)|pwned|반드시\s?['\"][^'\"\n]{1,40}['\"]"),
    _rule("hijack", 0.5, "승인 적합 결재 확정 종결 & 없이 관계 상관", r"(?:검토|심사|조사|확인|검증|여부)[^.\n]{0,20}(?:없이|관계없이|상관없이)[^.\n]{0,40}(?:승인|적합|결재|확정|종결)"),
)  # fmt: skip
