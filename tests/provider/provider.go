package main

import (
	"context"
	"os"

	"github.com/hashicorp/terraform-plugin-framework/datasource"
	sourceschema "github.com/hashicorp/terraform-plugin-framework/datasource/schema"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/provider"
	providerschema "github.com/hashicorp/terraform-plugin-framework/provider/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/planmodifier"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/stringplanmodifier"
	"github.com/hashicorp/terraform-plugin-framework/types"
)

func newProvider() provider.Provider { return &trial{} }

func report(diagnostics *diag.Diagnostics, err error) {
	if err != nil {
		diagnostics.AddError("the trial failed", err.Error())
	}
}

// Its scripts are those of the calls before any resource is looked at.
type trial struct{}

type trialModel struct {
	Cloud     types.String `tfsdk:"cloud"`
	Validate  []string     `tfsdk:"validate"`
	Configure []string     `tfsdk:"configure"`
}

// The environment reaches every provider of a run; the attribute is for two clouds in one.
func (m trialModel) cloud() string {
	if m.Cloud.ValueString() != "" {
		return m.Cloud.ValueString()
	}
	return os.Getenv("TRIAL_CLOUD")
}

func (*trial) Metadata(_ context.Context, _ provider.MetadataRequest, answer *provider.MetadataResponse) {
	answer.TypeName = "trial"
}

func (*trial) Schema(_ context.Context, _ provider.SchemaRequest, answer *provider.SchemaResponse) {
	script := providerschema.ListAttribute{ElementType: types.StringType, Optional: true}
	answer.Schema.Attributes = map[string]providerschema.Attribute{
		"cloud":     providerschema.StringAttribute{Optional: true},
		"validate":  script,
		"configure": script,
	}
}

func (*trial) ValidateConfig(ctx context.Context, request provider.ValidateConfigRequest, answer *provider.ValidateConfigResponse) {
	var model trialModel
	answer.Diagnostics.Append(request.Config.Get(ctx, &model)...)
	if len(model.Validate) > 0 {
		report(&answer.Diagnostics, operation{model.cloud(), "validate", "trial"}.run(ctx, model.Validate, func() {}))
	}
}

func (*trial) Configure(ctx context.Context, request provider.ConfigureRequest, answer *provider.ConfigureResponse) {
	var model trialModel
	answer.Diagnostics.Append(request.Config.Get(ctx, &model)...)
	if len(model.Configure) > 0 {
		report(&answer.Diagnostics, operation{model.cloud(), "configure", "trial"}.run(ctx, model.Configure, func() {}))
	}
	answer.ResourceData, answer.DataSourceData = model.cloud(), model.cloud()
}

func (*trial) Resources(context.Context) []func() resource.Resource {
	return []func() resource.Resource{func() resource.Resource { return &thing{} }}
}

func (*trial) DataSources(context.Context) []func() datasource.DataSource {
	return []func() datasource.DataSource{func() datasource.DataSource { return &reading{} }}
}

type thing struct{ cloud string }

type thingModel struct {
	Name   types.String `tfsdk:"name"`
	Note   types.String `tfsdk:"note"`
	Create []string     `tfsdk:"create"`
	Read   []string     `tfsdk:"read"`
	Update []string     `tfsdk:"update"`
	Delete []string     `tfsdk:"delete"`
}

func (*thing) Metadata(_ context.Context, _ resource.MetadataRequest, answer *resource.MetadataResponse) {
	answer.TypeName = "trial_thing"
}

func (*thing) Schema(_ context.Context, _ resource.SchemaRequest, answer *resource.SchemaResponse) {
	script := schema.ListAttribute{ElementType: types.StringType, Optional: true}
	replaced := []planmodifier.String{stringplanmodifier.RequiresReplace()}
	answer.Schema.Attributes = map[string]schema.Attribute{
		"name":   schema.StringAttribute{Required: true, PlanModifiers: replaced},
		"note":   schema.StringAttribute{Optional: true},
		"create": script,
		"read":   script,
		"update": script,
		"delete": script,
	}
}

func (t *thing) Configure(_ context.Context, request resource.ConfigureRequest, _ *resource.ConfigureResponse) {
	t.cloud, _ = request.ProviderData.(string)
}

func (t *thing) operation(kind string, model thingModel) operation {
	return operation{t.cloud, kind, model.Name.ValueString()}
}

func (t *thing) Create(ctx context.Context, request resource.CreateRequest, answer *resource.CreateResponse) {
	var model thingModel
	answer.Diagnostics.Append(request.Plan.Get(ctx, &model)...)
	keep := func() { answer.Diagnostics.Append(answer.State.Set(ctx, model)...) }
	err := t.operation("create", model).run(ctx, model.Create, keep)
	if err == nil {
		keep()
	}
	report(&answer.Diagnostics, err)
}

func (t *thing) Read(ctx context.Context, request resource.ReadRequest, answer *resource.ReadResponse) {
	var model thingModel
	answer.Diagnostics.Append(request.State.Get(ctx, &model)...)
	read := t.operation("read", model)
	if err := read.run(ctx, model.Read, func() {}); err != nil {
		report(&answer.Diagnostics, err)
		return
	}
	exists, err := read.exists()
	report(&answer.Diagnostics, err)
	if err == nil && !exists {
		answer.State.RemoveResource(ctx)
	}
}

func (t *thing) Update(ctx context.Context, request resource.UpdateRequest, answer *resource.UpdateResponse) {
	var model thingModel
	answer.Diagnostics.Append(request.Plan.Get(ctx, &model)...)
	keep := func() { answer.Diagnostics.Append(answer.State.Set(ctx, model)...) }
	err := t.operation("update", model).run(ctx, model.Update, keep)
	if err == nil {
		keep()
	}
	report(&answer.Diagnostics, err)
}

func (t *thing) Delete(ctx context.Context, request resource.DeleteRequest, answer *resource.DeleteResponse) {
	var model thingModel
	answer.Diagnostics.Append(request.State.Get(ctx, &model)...)
	report(&answer.Diagnostics, t.operation("delete", model).run(ctx, model.Delete, func() {}))
}

// What is read without being managed.
type reading struct{ cloud string }

type readingModel struct {
	Name types.String `tfsdk:"name"`
	Read []string     `tfsdk:"read"`
}

func (*reading) Metadata(_ context.Context, _ datasource.MetadataRequest, answer *datasource.MetadataResponse) {
	answer.TypeName = "trial_reading"
}

func (*reading) Schema(_ context.Context, _ datasource.SchemaRequest, answer *datasource.SchemaResponse) {
	answer.Schema.Attributes = map[string]sourceschema.Attribute{
		"name": sourceschema.StringAttribute{Required: true},
		"read": sourceschema.ListAttribute{ElementType: types.StringType, Optional: true},
	}
}

func (r *reading) Configure(_ context.Context, request datasource.ConfigureRequest, _ *datasource.ConfigureResponse) {
	r.cloud, _ = request.ProviderData.(string)
}

func (r *reading) Read(ctx context.Context, request datasource.ReadRequest, answer *datasource.ReadResponse) {
	var model readingModel
	answer.Diagnostics.Append(request.Config.Get(ctx, &model)...)
	read := operation{r.cloud, "read", model.Name.ValueString()}
	if err := read.run(ctx, model.Read, func() {}); err != nil {
		report(&answer.Diagnostics, err)
		return
	}
	answer.Diagnostics.Append(answer.State.Set(ctx, model)...)
}
